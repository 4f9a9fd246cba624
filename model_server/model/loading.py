"""Builds the model of a bundle from the bytes of its weights; each way that can fail has its own message."""

import ctypes
import io
import json
from typing import Any, Callable, Dict, Iterable, List, Tuple, Type, Union

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from model_server.model import ncnn_network, onnx_runtime
from model_server.model.architectures import ArchitectureError, Normalised, build_network
from model_server.model.bundle import (
    EXPORTS,
    FRUIT_CLASSIFIER,
    MANIFEST,
    NCNN,
    ONNX_RUNTIME,
    PICKLED,
    SAFETENSORS,
    TORCHSCRIPT,
    Bundle,
    BundleError,
)
from model_server.model.exporting import LOGITS, WITH_PROJECTIONS, EngineError, NotInstalledError
from model_server.model.fruit_classifier import FruitClassifier
from model_server.model.ncnn_network import NcnnNetwork
from model_server.model.onnx_runtime import OnnxNetwork
from model_server.model.projections import add_projections
from model_server.model.reference import PROJECTIONS
from model_server.model.torchscript import compile_for, is_torchscript, load_torchscript
from model_server.settings import PREFIX

WRAPPERS = {"module.": "DataParallel", "_orig_mod.": "torch.compile", "model.": "a module around the model"}

# Before it, `weights_only` does not keep a file from running code (CVE-2025-32434).
SAFE_PICKLES = (2, 6)
SAFETENSORS_TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

Model = Callable[[Tensor], Tensor]
NETWORKS: Dict[str, Type[Union[NcnnNetwork, OnnxNetwork]]] = {NCNN: NcnnNetwork, ONNX_RUNTIME: OnnxNetwork}


def load_model(bundle: Bundle, allow_pickle: bool = False, engine: str = "") -> Model:
    """Build the model of a bundle, load its weights and run it once.

    Args:
        bundle: as read from disk.
        allow_pickle: whether a release of torch whose `weights_only` can be bypassed may load a `weights.pt`.
        engine: what is to run it; empty: what the bundle says.

    Returns:
        A model that takes float32 pixels of shape (1, 3, input_size, input_size), values 0..255,
        fastest with the channels last in memory, and returns logits of shape (1, classes), or with the projections
        after them (1, classes + len(PROJECTIONS)).

    Raises:
        BundleError: the architecture is unknown, the weights do not fit it or are not safe to load, or the model gives
            no logits; or the engine is not installed.
    """
    grey = _grey(bundle)
    engine = engine or bundle.manifest.engine
    if engine in EXPORTS:
        exported = _load_exported(bundle, engine)
        _check_logits(exported, grey, bundle, len(PROJECTIONS) if exported.output == WITH_PROJECTIONS else 0)
        return exported
    model: Model
    model, projections = build_model(bundle, allow_pickle)
    _check_logits(model, grey, bundle, projections)
    # TorchScript is served as it is: freezing it would change the last digits of its logits; its author can freeze it.
    if bundle.manifest.architecture in (FRUIT_CLASSIFIER, TORCHSCRIPT):
        return model
    compiled: Model = compile_for(grey, model)
    _check_logits(compiled, grey, bundle, projections)
    return compiled


def build_model(bundle: Bundle, allow_pickle: bool = False) -> Tuple[nn.Module, int]:
    """Build the model of a bundle and load its weights, in evaluation mode; it takes what `load_model`'s takes.

    Returns:
        The model, and how many projections it answers with after the logits.

    Raises:
        BundleError: the architecture is unknown, or the weights do not fit it or are not safe to load.
    """
    manifest = bundle.manifest
    if manifest.architecture == TORCHSCRIPT:
        network, projections = _load_torchscript(bundle), 0
    else:
        network = _load_network(bundle, allow_pickle)
        projections = add_projections(network, len(manifest.classes))
    if isinstance(network, FruitClassifier):
        network.prepare_for_inference(manifest.mean, manifest.std)
        model: nn.Module = network
    else:
        model = Normalised(network, manifest.mean, manifest.std)
    # The bytes of a PIL image have this order already, and convolutions are faster with it.
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last), projections


def export_model(bundle: Bundle, engine: str, allow_pickle: bool = False) -> bytes:
    """Return the model of a bundle as the file of an engine other than torch.

    Raises:
        BundleError: what `build_model` raises.
        EngineError: it cannot be exported.
    """
    model, projections = build_model(bundle, allow_pickle)
    output = WITH_PROJECTIONS if projections else LOGITS
    model, example = model.to(memory_format=torch.contiguous_format), _grey(bundle).contiguous()
    if engine == NCNN:
        return ncnn_network.export(model.as_layers() if isinstance(model, Normalised) else model, example, output)
    return onnx_runtime.export(model, example, output)


def _load_exported(bundle: Bundle, engine: str) -> Union[NcnnNetwork, OnnxNetwork]:
    file = EXPORTS[engine].file
    if engine not in bundle.exports:
        raise BundleError(
            f"{bundle.path} has no {file} for the engine {engine}: make the bundle again with "
            f"`model-server bundle create --engine {engine}`, or let {PREFIX}ENGINE be empty."
        )
    try:
        return NETWORKS[engine](bundle.exports[engine])
    except EngineError as error:
        cure = f"install the extra {engine} of model-server, or " if isinstance(error, NotInstalledError) else ""
        raise BundleError(
            f"{bundle.path / file} cannot be served: {error}; {cure}set {PREFIX}ENGINE=torch (the role's "
            "model_server_engine) to go without it."
        ) from error


def _grey(bundle: Bundle) -> Tensor:
    size = bundle.manifest.input_size
    return torch.full((1, 3, size, size), 128.0).contiguous(memory_format=torch.channels_last)


def _check_logits(model: Model, grey: Tensor, bundle: Bundle, projections: int) -> None:
    """Run a model twice and check its logits, and that so many projections follow.

    TorchScript needs these runs to optimise itself.
    """
    manifest = bundle.manifest
    size, classes, weights = manifest.input_size, len(manifest.classes), bundle.weights_path
    try:
        with torch.inference_mode():
            logits, again = model(grey), model(grey)
    except Exception as error:  # a user's network can raise anything
        raise BundleError(
            f"{bundle.path}: {manifest.architecture} fails with an image of {size}×{size} pixels, the input_size of "
            f"{MANIFEST}: {_reason(error)}."
        ) from error
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = f"{logits.dtype} numbers" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise BundleError(f"{weights} answers an image with {got}, but a float tensor of logits is expected.")
    if logits.shape != (1, classes + projections):
        more = f", and {projections} projections" if projections else ""
        wanted = (
            f"(1, {classes + projections}) is expected: a logit for each of the {classes} classes of {MANIFEST}{more}"
        )
        raise BundleError(f"{weights} answers an image with the shape {tuple(logits.shape)}, but {wanted}.")
    if not torch.isfinite(logits).all():
        values = ", ".join(f"{value:.3g}" for value in logits[0].tolist()[:10])
        raise BundleError(f"{weights} answers a grey image with logits that are not finite: {values}.")
    if not torch.allclose(logits, again, rtol=1e-3, atol=1e-4):
        raise BundleError(
            f"{weights} answers the same image differently each time; call model.eval() before it is exported."
        )


def _reason(error: Exception) -> str:
    """Return the line of an error that says what is wrong; TorchScript's is the last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if "TorchScript" in lines[0] else 0].rstrip(".")[:300]


def _load_torchscript(bundle: Bundle) -> nn.Module:
    path = bundle.weights_path
    if path.name == SAFETENSORS:
        raise BundleError(f"{path} is for a state dict, and a TorchScript file is a program: name it {PICKLED}.")
    if not is_torchscript(bundle.weights):
        raise BundleError(
            f"{path} is not a TorchScript file (as torch.jit.save writes it), though its SHA-256 is the expected one."
        )
    try:
        return load_torchscript(bundle.weights)
    except Exception as error:  # a damaged file can raise anything, here and below
        raise BundleError(f"{path} cannot be loaded by torch {torch.__version__}: {_reason(error)}.") from error


def _load_network(bundle: Bundle, allow_pickle: bool) -> nn.Module:
    manifest = bundle.manifest
    state = load_state(bundle, allow_pickle)
    try:
        network = build_network(manifest.architecture, len(manifest.classes), manifest.input_size, state)
    except ArchitectureError as error:
        raise BundleError(f"{bundle.path / MANIFEST}: {error}") from error
    _require_fit(bundle, state, network.state_dict())
    network.load_state_dict(state)
    return network


def load_state(bundle: Bundle, allow_pickle: bool) -> Dict[str, Tensor]:
    """Return the state dict of a bundle.

    Raises:
        BundleError: its weights are none, or are not safe to load with this release of torch.
    """
    path = bundle.weights_path
    if is_torchscript(bundle.weights):
        raise BundleError(
            f"{path} is a TorchScript file, but {bundle.manifest.architecture} takes a state dict; "
            f"to serve the file, let {MANIFEST} say architecture: {TORCHSCRIPT}."
        )
    if bundle.is_safetensors:
        return _load_safetensors(bundle)
    if torch.__version__ < SAFE_PICKLES and not allow_pickle:
        raise BundleError(
            f"{path} could run code in torch {torch.__version__} (CVE-2025-32434): make the bundle again with "
            f"`model-server bundle create` and torch 2.6 or newer, which writes {SAFETENSORS}; or set "
            f"{PREFIX}ALLOW_PICKLE=true (the role's model_server_allow_pickle) if you trust whoever made the file."
        )
    return _load_pickled(bundle)


def to_safetensors(state: Dict[str, Tensor]) -> bytes:
    """Return a state dict as a safetensors file: a length, JSON of that length, and the numbers.

    The library's own functions want numpy before release 0.8, which Python 3.8 and 3.9 do not have.
    """
    header: Dict[str, Dict[str, Any]] = {}
    numbers = bytearray()
    widest_first = sorted(state.items(), key=lambda item: (-item[1].element_size(), item[0]))  # keeps them aligned
    for name, value in widest_first:
        tensor = value.detach().contiguous()
        begin = len(numbers)
        numbers += ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())
        kind = SAFETENSORS_TYPES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [begin, len(numbers)]}
    described = json.dumps(header, separators=(",", ":")).encode()
    described += b" " * (-len(described) % 8)
    return len(described).to_bytes(8, "little") + described + bytes(numbers)


def _load_safetensors(bundle: Bundle) -> Dict[str, Tensor]:
    try:
        state: Dict[str, Tensor] = safetensors.torch.load(bundle.weights)
    except Exception as error:  # damaged, or a type of numbers that this torch lacks
        raise BundleError(
            f"{bundle.weights_path} is not a safetensors file that can be read ({_reason(error)}), "
            "though its SHA-256 is the expected one."
        ) from error
    return dict(sorted(state.items()))  # the library's order is random, and errors name the first ones


def _load_pickled(bundle: Bundle) -> Dict[str, Tensor]:
    path = bundle.weights_path
    try:
        loaded: Any = torch.load(io.BytesIO(bundle.weights), map_location="cpu", weights_only=True)
    except Exception as error:
        raise BundleError(
            f"{path} is not a PyTorch state dict (as torch.save(model.state_dict(), …) writes it), "
            "though its SHA-256 is the expected one."
        ) from error
    if not _is_state(loaded):
        entries = loaded.items() if isinstance(loaded, dict) else ()
        inner = [name for name, value in entries if value and _is_state(value)]
        hint = f"; its entry {inner[0]!r} is one, save that alone" if inner else ""
        kind = type(loaded).__name__
        raise BundleError(f"{path} holds a {kind}, but a state dict (names to tensors) is expected{hint}.")
    state: Dict[str, Tensor] = loaded
    return state


def _is_state(loaded: Any) -> bool:
    return isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values())


def _require_fit(bundle: Bundle, state: Dict[str, Tensor], expected: Dict[str, Tensor]) -> None:
    path, architecture = bundle.weights_path, bundle.manifest.architecture
    for prefix, wrapper in WRAPPERS.items():
        if state.keys() == {prefix + name for name in expected}:
            raise BundleError(f"{path} has keys that begin with {prefix!r}, of {wrapper}: save them without it.")
    lacking = [name for name in expected if name not in state]
    foreign = [name for name in state if name not in expected]
    parts = [f"lacks {_some(lacking)}"] * bool(lacking) + [f"has {_some(foreign)} too many"] * bool(foreign)
    if parts:
        raise BundleError(f"{path} does not fit {architecture}: it {' and '.join(parts)}.")
    for name, tensor in expected.items():
        got, want = tuple(state[name].shape), tuple(tensor.shape)
        if got != want:
            raise BundleError(f"{path}: {name} has the shape {got}, but {MANIFEST} expects {want}.")


def _some(names: Iterable[str]) -> str:
    known: List[str] = [str(name) for name in names]
    more = f" and {len(known) - 3} more" if len(known) > 3 else ""
    return ", ".join(known[:3]) + more

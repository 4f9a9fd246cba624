"""The model of a bundle, for the commands that let it answer."""

from typing import TYPE_CHECKING

from model_server.commands import CommandError
from model_server.model.bundle import ONNX_RUNTIME, TORCHSCRIPT, Bundle, BundleError
from model_server.settings import read_weights_settings

if TYPE_CHECKING:  # the import of torch takes seconds
    from model_server.model.classifier import Classifier


def load_classifier(bundle: Bundle, engine: str = "") -> "Classifier":
    """Load the model of a bundle.

    Args:
        bundle: that has it.
        engine: what is to run it; empty: what the setting says, or the bundle.

    Raises:
        BundleError: the bundle cannot be served, or there is no torch.
        SettingsError: a `MODEL_SERVER_*` variable is wrong.
    """
    try:
        from model_server.model.classifier import Classifier  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise BundleError("PyTorch is not installed in this Python environment.") from error
    settings = read_weights_settings()
    return Classifier(bundle, settings.allow_pickle, engine or settings.engine)


def export_onnx(bundle: Bundle) -> bytes:
    """Return the model of a bundle as an ONNX file.

    Raises:
        CommandError: it cannot be exported.
    """
    from model_server.model.loading import export_model  # noqa: PLC0415 - imports torch
    from model_server.model.onnx_runtime import OnnxError  # noqa: PLC0415

    try:
        return export_model(bundle, read_weights_settings().allow_pickle)
    except OnnxError as error:
        raise CommandError(f"{bundle.manifest.architecture} cannot be served by {ONNX_RUNTIME}: {error}.") from error


def without_pickle(bundle: Bundle) -> bytes:
    """Return the weights of a bundle that can be served: a state dict as safetensors, TorchScript as it is."""
    if bundle.manifest.architecture == TORCHSCRIPT:
        return bundle.weights
    from model_server.model.loading import load_state, to_safetensors  # noqa: PLC0415 - imports torch

    return to_safetensors(load_state(bundle, read_weights_settings().allow_pickle))

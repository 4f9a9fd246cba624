"""The model behind the server: from an image to the name of its class."""

import io
import pickle
from typing import Any, Dict, NamedTuple, Tuple

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from model_server.architectures import ARCHITECTURES
from model_server.bundle import MANIFEST, WEIGHTS, Bundle, BundleError
from model_server.preprocessing import resize_and_crop, scale_and_crop

# One thread per worker: OpenMP threads of several workers spin against each other on the same cores.
# Set before any forward pass, so that no thread pool exists that a fork could lose.
torch.set_num_threads(1)

# Releases before 2.1 scale floats only, and more slowly than Pillow.
RESIZES_BYTES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 1)


class Classification(NamedTuple):
    """What the model says of an image; `confidence` is the softmax of the likely class, 0..1."""

    likely_class: str
    confidence: float


class Classifier:
    """A model ready to answer.

    Attributes:
        manifest: what the bundle says of the model; its `classes` are in the order of the logits.
        reference: what its images are like, when the bundle says so.
        ready: true once a forward pass has been done.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Build the model of a bundle, load its weights and run it once.

        Raises:
            BundleError: the architecture is unknown, or the weights do not fit it.
        """
        manifest = bundle.manifest
        self.manifest = manifest
        self.reference = bundle.reference
        self.ready = False
        self._size = manifest.input_size
        if manifest.architecture not in ARCHITECTURES:
            known = ", ".join(sorted(ARCHITECTURES))
            name = manifest.architecture
            raise BundleError(f"{bundle.path / MANIFEST}: architecture is {name!r}, known are: {known}.")
        model = ARCHITECTURES[manifest.architecture](len(manifest.classes), manifest.input_size)
        model.load_state_dict(_load_weights(bundle, model.state_dict()))
        model.eval().requires_grad_(False)
        model.prepare_for_inference(manifest.mean, manifest.std)
        # The bytes of a PIL image are in this order already, and convolutions are faster in it.
        self._model = model.to(memory_format=torch.channels_last)
        self.classify(self.preprocess(Image.new("RGB", (self._size, self._size))))
        self.ready = True

    def preprocess(self, image: Image.Image) -> Tensor:
        """Return what the model sees of an RGB image of any size: float32 of shape (1, 3, input_size, input_size).

        Values are 0..255, whole numbers, channels last in memory: the pixels of `preprocessing.resize_and_crop`,
        here and there one level off, in half of its time.
        """
        if not RESIZES_BYTES:
            return to_tensor(resize_and_crop(image, self._size)).float()
        scaled_width, scaled_height, left, top = scale_and_crop(image.width, image.height, self._size)
        scaled = functional.interpolate(
            to_tensor(image), (scaled_height, scaled_width), mode="bilinear", antialias=True, align_corners=False
        )
        return scaled[:, :, top : top + self._size, left : left + self._size].float()

    def classify(self, pixels: Tensor) -> Classification:
        """Name the class of a preprocessed image."""
        logits = self.logits(pixels)
        index = int(logits.argmax())
        return Classification(self.manifest.classes[index], float(logits.softmax(0)[index]))

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the model's outputs for a preprocessed image: float32, shape (classes,)."""
        with torch.inference_mode():
            logits: Tensor = self._model(pixels)[0]
        return logits


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image of W×H pixels as uint8 of shape (1, 3, H, W), channels last in memory."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2)


def _load_weights(bundle: Bundle, expected: Dict[str, Tensor]) -> Dict[str, Tensor]:
    path = bundle.path / WEIGHTS
    try:
        loaded: Any = torch.load(io.BytesIO(bundle.weights), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise BundleError(f"{path} is not a PyTorch state dict, though its SHA-256 is the expected one.") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise BundleError(f"{path} holds a {type(loaded).__name__}, but a state dict (names to tensors) is expected.")
    if loaded.keys() != expected.keys():
        names = f"{_names(loaded)}, but {bundle.manifest.architecture} expects {_names(expected)}"
        raise BundleError(f"{path} has the keys {names}.")
    for name, tensor in expected.items():
        got, want = _shape(loaded[name]), _shape(tensor)
        if got != want:
            raise BundleError(f"{path}: {name} has the shape {got}, but {MANIFEST} expects {want}.")
    return loaded


def _names(state: Dict[str, Tensor]) -> str:
    return ", ".join(str(name) for name in state) or "(none)"


def _shape(tensor: Tensor) -> Tuple[int, ...]:
    return tuple(tensor.shape)

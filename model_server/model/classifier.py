"""The model behind the server: from an image to the name of its class."""

from typing import List, NamedTuple, Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from model_server.model.bundle import FRUIT_CLASSIFIER, LARGEST_BATCH, TORCH, Bundle
from model_server.model.loading import load_model
from model_server.model.preprocessing import LARGE, resize_and_crop, rgbx, scaling_of

# One thread per worker: OpenMP threads of several workers would compete for the same cores.
# Set before any forward pass: a fork would lose the threads of a pool.
torch.set_num_threads(1)

# Releases before 2.1 scale floats only, and more slowly than Pillow.
RESIZES_BYTES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 1)
PANORAMA = 4  # ratio of the sides above which Pillow scales faster


class Classification(NamedTuple):
    """What the model says of an image; `confidence` is the softmax of the likely class, 0..1.

    `logits` are the model's outputs: float32 of shape (classes,). `projections` are those of the layer before the last:
    float32 of shape (len(PROJECTIONS),), or (0,) where the model has none.
    """

    likely_class: str
    confidence: float
    logits: Tensor
    projections: Tensor


class Classifier:
    """A model ready to answer.

    Attributes:
        manifest: what the bundle says of the model; its `classes` are in the order of the logits.
        reference: of the bundle, None if it has none.
        accuracy: of the bundle, None if it has none.
        engine: what runs it.
        batch_size: the largest number of images that it classifies together.
        ready: true once a forward pass has been done.
    """

    def __init__(self, bundle: Bundle, allow_pickle: bool = False, engine: str = "") -> None:
        """Build the model of a bundle, load its weights and run it once.

        Args:
            bundle: as read from disk.
            allow_pickle: whether a release of torch whose `weights_only` can be bypassed may load a `weights.pt`.
            engine: what is to run it; empty: what the bundle says.

        Raises:
            BundleError: what `load_model` raises.
        """
        manifest = bundle.manifest
        self.manifest = manifest
        self.reference = bundle.reference
        self.accuracy = bundle.accuracy
        self.ready = False
        self._scaling = scaling_of(manifest)
        self.engine = engine or manifest.engine
        self._classes = len(manifest.classes)
        self._model = load_model(bundle, allow_pickle, self.engine)
        # TorchScript may accept no batch size but 1; what a bundle says was proved with its own engine.
        known = LARGEST_BATCH if (manifest.architecture, self.engine) == (FRUIT_CLASSIFIER, TORCH) else 1
        self.batch_size = manifest.batch_size or known if self.engine == manifest.engine else known
        pixels = self.preprocess(Image.new("RGB", (manifest.input_size, manifest.input_size)))
        for count in range(1, self.batch_size + 1):  # the first run of each shape is slow
            self.classify_batch([pixels] * count)
        self.ready = True

    def preprocess(self, image: Image.Image) -> Tensor:
        """Return what the model sees of an RGB image of any size: float32 of shape (1, 3, input_size, input_size).

        Values are 0..255, whole numbers, channels last in memory: the pixels of `preprocessing.resize_and_crop`,
        here and there one level off, in half of its time.
        """
        # torch also scales what the crop removes: wasted for a panorama, gigabytes for an image one pixel high. And
        # a large image would have to be copied for it.
        scaling, size = self._scaling, self._scaling.size
        is_large = image.width * image.height > LARGE
        if is_large or not RESIZES_BYTES or not scaling.antialias or max(image.size) > PANORAMA * min(image.size):
            return to_tensor(resize_and_crop(image, scaling)).float()
        scaled_width, scaled_height, left, top = scaling.measure(image.width, image.height)
        # Scaling all four bytes of a pixel is faster than selecting three.
        scaled = functional.interpolate(
            _four_channels(image),
            (scaled_height, scaled_width),
            mode=scaling.interpolation,
            antialias=True,
            align_corners=False,
        )
        return scaled[:, :3, top : top + size, left : left + size].float()

    def classify(self, pixels: Tensor) -> Classification:
        """Name the class of a preprocessed image."""
        return self.classify_batch([pixels])[0]

    def classify_batch(self, images: Sequence[Tensor]) -> List[Classification]:
        """Name the class of each of 1 to `batch_size` preprocessed images."""
        with torch.inference_mode():
            outputs = self._run(images)
            logits, projections = outputs[:, : self._classes], outputs[:, self._classes :]
            indices = logits.argmax(1)
            confidences = logits.softmax(1).gather(1, indices[:, None])[:, 0]
        classes = self.manifest.classes
        answers = zip(indices.tolist(), confidences.tolist(), logits, projections)
        return [Classification(classes[index], *rest) for index, *rest in answers]

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the model's outputs for a preprocessed image: float32, shape (classes,)."""
        return self.logits_of_batch([pixels])[0]

    def logits_of_batch(self, images: Sequence[Tensor]) -> Tensor:
        """Return the model's outputs for preprocessed images: float32, shape (images, classes)."""
        with torch.inference_mode():
            return self._run(images)[:, : self._classes]

    def _run(self, images: Sequence[Tensor]) -> Tensor:
        return self._model(images[0] if len(images) == 1 else torch.cat(tuple(images)))


def to_tensor(image: Image.Image) -> Tensor:
    """Return an RGB image of W×H pixels as uint8 of shape (1, 3, H, W), four bytes a pixel apart in memory."""
    return _four_channels(image)[:, :3]


def _four_channels(image: Image.Image) -> Tensor:
    pixels = torch.frombuffer(rgbx(image), dtype=torch.uint8)
    return pixels.view(1, image.height, image.width, 4).permute(0, 3, 1, 2)

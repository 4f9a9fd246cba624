"""The networks that a bundle can name."""

import warnings
from difflib import get_close_matches
from typing import Any, Collection, Sequence, Tuple

import torch
from torch import Tensor, nn

from model_server.model.bundle import FRUIT_CLASSIFIER, TORCHSCRIPT
from model_server.model.fruit_classifier import FruitClassifier


class Normalised(nn.Module):
    """A network that was trained on (pixel / 255 - mean) / std, and takes pixels of 0..255: one operation more.

    For networks whose first convolution is padded: normalisation cannot be folded into it.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        means, deviations = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (mean, std))
        self.register_buffer("shift", (-means / deviations).float())
        self.register_buffer("scale", (1 / (255 * deviations)).float())

    def forward(self, pixels: Tensor) -> Any:
        return self.network(torch.addcmul(self.shift, pixels, self.scale))

    def as_layers(self) -> nn.Module:
        """Return the same as layers, for an exporter that does not know `addcmul`."""
        normalise = nn.BatchNorm2d(3, eps=0, affine=False)
        normalise.running_mean = -(self.shift / self.scale).flatten()
        normalise.running_var = (1 / self.scale**2).flatten()
        return nn.Sequential(normalise, self.network).eval()


# Networks with auxiliary classifiers, which only training needs, and the prefix of their keys.
AUXILIARY = {"googlenet": "aux", "inception_v3": "AuxLogits."}


class ArchitectureError(ValueError):
    """A name that no network can be built for; the message is one sentence."""


def build_network(name: str, classes: int, input_size: int, keys: Collection[str]) -> nn.Module:
    """Build a network; its weights are loaded afterwards.

    Args:
        name: `fruit_classifier`, or one of torchvision's classification models.
        classes: number of its outputs.
        input_size: side of the square input in pixels; only the fruit classifier needs it.
        keys: of the state dict that is to be loaded.

    Raises:
        ArchitectureError: the name is unknown, or torchvision is not there.
    """
    if name == FRUIT_CLASSIFIER:
        return FruitClassifier(classes, input_size)
    own = (FRUIT_CLASSIFIER, TORCHSCRIPT)
    if get_close_matches(name, own, cutoff=0.8):  # said without torchvision
        raise ArchitectureError(f"architecture is {name!r}; did you mean {get_close_matches(name, own)[0]}?")
    get_model, known = _import_torchvision(name)
    if name not in known:
        near = get_close_matches(name.lower(), known)
        hint = f"did you mean {' or '.join(near)}?" if near else "known are torchvision's, like resnet18."
        raise ArchitectureError(
            f"architecture is {name!r}, neither {FRUIT_CLASSIFIER} nor {TORCHSCRIPT} nor a classification model of "
            f"torchvision; {hint}"
        )
    options = {}
    if name in AUXILIARY:
        # Pretrained weights may lack these classifiers. Initialising weights that are then overwritten takes seconds.
        options = {"aux_logits": any(key.startswith(AUXILIARY[name]) for key in keys), "init_weights": False}
    network: nn.Module = get_model(name, weights=None, num_classes=classes, **options)
    return network


def _import_torchvision(name: str) -> Tuple[Any, Sequence[str]]:
    """Return torchvision's `get_model` and the names of its classification models; `name` is why they are needed."""
    try:
        with warnings.catch_warnings():
            # Of its decoders, which are not used here.
            warnings.filterwarnings("ignore", "Failed to load image Python extension", UserWarning)
            from torchvision import models  # noqa: PLC0415 - only who names one of its models has to have it
            from torchvision.models import get_model, list_models  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise ArchitectureError(
            f"architecture is {name!r}, neither {FRUIT_CLASSIFIER} nor {TORCHSCRIPT}, and torchvision, which may have "
            f"it, is not installed: set the role's variable model_server_torchvision to true, or install the "
            f"torchvision that belongs to torch {torch.__version__}."
        ) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise ArchitectureError(
            f"architecture is {name!r}, but the torchvision that is installed does not work with torch "
            f"{torch.__version__} (0.14 is the oldest that can do): {str(error).splitlines()[0]}."
        ) from error
    return get_model, list_models(module=models)

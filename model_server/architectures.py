"""The networks a bundle can name."""

import warnings
from difflib import get_close_matches
from typing import Any, Collection, Sequence, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_server.bundle import FRUIT_CLASSIFIER, TORCHSCRIPT


def _fold_normalisation(conv: nn.Conv2d, mean: Sequence[float], std: Sequence[float]) -> None:
    """Let the first convolution take pixels of 0..255 instead of (pixel / 255 - mean) / std.

    Exact because the convolution has no padding, whose zeros would be shifted as well:
    w·(x/255 - m)/s + b = (w/(255·s))·x + (b - Σ w·m/s).
    """
    weight, bias = conv.weight.double(), conv.bias.double()
    means = torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1)
    scaled = weight / torch.tensor(std, dtype=torch.float64).view(1, 3, 1, 1)
    conv.bias = nn.Parameter((bias - (scaled * means).sum(dim=(1, 2, 3))).float(), requires_grad=False)
    conv.weight = nn.Parameter((scaled / 255).float(), requires_grad=False)


class PooledConvolution(nn.Module):
    """A convolution and the 2×2 max pooling after it, as a convolution and two maxima: the same values, sooner.

    Two pixels side by side become two groups of channels of a convolution that takes every second column, whose
    kernel is wider by a column and holds the former one at two places. What is added are zeros. Rows are compared
    as they are: long pieces of memory, unlike single pixels.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        """Take over the weights of a convolution of stride 1 without padding."""
        super().__init__()
        channels, inputs, rows, columns = conv.weight.shape
        weight = conv.weight.new_zeros(2, channels, inputs, rows, columns + 1)
        for column in range(2):
            weight[column, :, :, :, column : column + columns] = conv.weight
        self.weight = nn.Parameter(weight.flatten(0, 1), requires_grad=False)
        self.bias = nn.Parameter(conv.bias.detach().repeat(2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        pairs = functional.conv2d(x, self.weight, self.bias, stride=(1, 2))
        end = pairs.shape[2] // 2 * 2
        left, right = torch.maximum(pairs[:, :, 0:end:2], pairs[:, :, 1:end:2]).chunk(2, dim=1)
        return torch.maximum(left, right)


class FruitClassifier(nn.Module):
    """Two convolutions and three linear layers, with the state-dict keys of the published fruit classifier.

    Takes a float tensor of shape (N, 3, input_size, input_size) and returns logits of shape (N, classes).
    """

    def __init__(self, classes: int, input_size: int) -> None:
        super().__init__()
        side = ((input_size - 4) // 2 - 4) // 2  # each 5×5 convolution takes 4 pixels, each pooling halves
        self.conv1: nn.Module = nn.Conv2d(3, 6, 5)
        self.pool1: nn.Module = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def prepare_for_inference(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take pixels of 0..255 from now on, for the same logits, faster; there is no way back to training.

        Args:
            mean: of red, green and blue, as it was subtracted from pixels of 0..1 in training.
            std: what they were divided by after that.
        """
        _fold_normalisation(self.conv1, mean, std)
        self.conv1, self.pool1 = PooledConvolution(self.conv1), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # Pooling first leaves a quarter of the values to rectify, and the same result: both are monotonic.
        x = functional.relu(self.pool1(self.conv1(x)))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        x = torch.flatten(x, 1)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


class Normalised(nn.Module):
    """A network that was trained on (pixel / 255 - mean) / std, and takes pixels of 0..255: one operation more.

    For networks whose first convolution is padded, so that nothing can be folded into it.
    """

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        means, deviations = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (mean, std))
        self.register_buffer("shift", (-means / deviations).float())
        self.register_buffer("scale", (1 / (255 * deviations)).float())

    def forward(self, pixels: Tensor) -> Any:
        return self.network(torch.addcmul(self.shift, pixels, self.scale))


# Networks with classifiers that only training needs, and how the keys of these begin.
AUXILIARY = {"googlenet": "aux", "inception_v3": "AuxLogits."}


class ArchitectureError(ValueError):
    """A name that no network can be built for; the message is one sentence."""


def build_network(name: str, classes: int, input_size: int, keys: Collection[str]) -> nn.Module:
    """Build a network, with weights that are still to be loaded.

    Args:
        name: `fruit_classifier`, or one of torchvision's classification models.
        classes: number of its outputs.
        input_size: side of the square input in pixels; torchvision's models find it out themselves.
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
        # Pretrained ones may come without these classifiers. Initialising what is overwritten takes seconds.
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

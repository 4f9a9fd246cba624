"""The fruit classifier of the original lab, with what makes it fast."""

from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def _fold_normalisation(conv: nn.Conv2d, mean: Sequence[float], std: Sequence[float]) -> None:
    """Change the first convolution to take pixels of 0..255 instead of (pixel / 255 - mean) / std.

    This is exact, because the convolution has no padding (zeros there would be normalised, too):
    w·(x/255 - m)/s + b = (w/(255·s))·x + (b - Σ w·m/s).
    """
    weight, bias = conv.weight.double(), conv.bias.double()
    means = torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1)
    scaled = weight / torch.tensor(std, dtype=torch.float64).view(1, 3, 1, 1)
    conv.bias = nn.Parameter((bias - (scaled * means).sum(dim=(1, 2, 3))).float(), requires_grad=False)
    conv.weight = nn.Parameter((scaled / 255).float(), requires_grad=False)


class PooledConvolution(nn.Module):
    """A convolution and the 2×2 max pooling after it, as a convolution and two maxima: the same values, faster.

    Neighbouring columns become two groups of channels of one convolution with a horizontal stride of 2. Its kernel is
    one column wider, padded with zeros, and holds the original kernel at two offsets. The maximum of two rows is taken
    over contiguous memory, which is faster than over single pixels.
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
        """Take pixels of 0..255 from now on, and give the same logits faster; the model cannot be trained any more.

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

"""The networks a bundle can name."""

from typing import Callable, Dict

import torch
from torch import Tensor, nn
from torch.nn import functional


class FruitClassifier(nn.Module):
    """Two convolutions and three linear layers, with the state-dict keys of the published fruit classifier.

    Takes a float tensor of shape (N, 3, input_size, input_size) and returns logits of shape (N, classes).
    """

    def __init__(self, classes: int, input_size: int) -> None:
        super().__init__()
        side = ((input_size - 4) // 2 - 4) // 2  # each 5×5 convolution takes 4 pixels, each pooling halves
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        # Pooling first leaves a quarter of the values to rectify, and the same result: both are monotonic.
        x = functional.relu(functional.max_pool2d(self.conv1(x), 2))
        x = functional.relu(functional.max_pool2d(self.conv2(x), 2))
        x = torch.flatten(x, 1)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


ARCHITECTURES: Dict[str, Callable[[int, int], nn.Module]] = {"fruit_classifier": FruitClassifier}

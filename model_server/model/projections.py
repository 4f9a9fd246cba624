"""Random projections of what the last layer of a network gets: where an image lies among what the network knows.

They are further outputs of that layer, so they cost next to nothing, and each engine computes them. Their signs are
fixed: what a reference says of them holds for each server and release.
"""

from random import Random

import torch
from torch import nn

from model_server.model.reference import PROJECTIONS


def add_projections(network: nn.Module, classes: int) -> int:
    """Let a network answer with the projections after the logits: outputs of shape (N, classes + len(PROJECTIONS)).

    Each is the sum of the last layer's inputs with random signs (Achlioptas, 2003, "Database-friendly random
    projections"), divided by the square root of how many there are.

    A network whose last layer is not linear, like SqueezeNet, stays as it is.

    Args:
        network: with its weights loaded.
        classes: number of its outputs.

    Returns:
        How many were added.
    """
    linear = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    if not linear or linear[-1].out_features != classes:
        return 0
    last = linear[-1]
    signs = Random("projections")
    rows = [[(-1.0 if signs.random() < 0.5 else 1.0) for _ in range(last.in_features)] for _ in PROJECTIONS]
    last.weight = _with(last.weight, torch.tensor(rows) / last.in_features**0.5)
    if last.bias is not None:
        last.bias = _with(last.bias, torch.zeros(len(PROJECTIONS)))
    last.out_features += len(PROJECTIONS)
    return len(PROJECTIONS)


def _with(parameter: nn.Parameter, more: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(torch.cat((parameter.detach(), more.to(parameter.dtype))), requires_grad=False)

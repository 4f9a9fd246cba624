"""What torchvision says of its own weights: how images are to be prepared for them, and what they know."""

import difflib
from typing import Any, Dict

from model_server.commands import CommandError
from model_server.model.architectures import AUXILIARY


def preset(name: str) -> Dict[str, object]:
    """Return the manifest's fields of weights of torchvision; nothing is fetched.

    Args:
        name: such as `ResNet50_Weights.DEFAULT` or `ResNet50_Weights.IMAGENET1K_V1`.

    Raises:
        CommandError: torchvision is not installed, has no such weights, or prepares images as the server does not.
    """
    try:
        from torchvision import models, transforms  # noqa: PLC0415 - takes seconds, and may be absent
    except ImportError as error:
        raise CommandError("--preset needs torchvision; install it, or give the options that it would set.") from error
    known = {builder: models.get_model_weights(builder) for builder in models.list_models(module=models)}
    enum_name, _, member = name.partition(".")
    found = [(builder, weights) for builder, weights in known.items() if weights.__name__ == enum_name]
    if not found or not hasattr(found[0][1], member):
        names = sorted(
            f"{weights.__name__}.{each}" for weights in known.values() for each in ("DEFAULT", *weights.__members__)
        )
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "they are named like ResNet50_Weights.DEFAULT."
        raise CommandError(f"--preset is {name}, and torchvision has no such weights for a classifier; {hint}")
    builder, weights = found[0]
    chosen = getattr(weights, member)
    how: Any = chosen.transforms()
    methods = {transforms.InterpolationMode.BILINEAR: "bilinear", transforms.InterpolationMode.BICUBIC: "bicubic"}
    if not hasattr(how, "crop_size") or how.interpolation not in methods:
        raise CommandError(f"--preset {name} prepares images in a way that the server does not.")
    (crop,), (resize,) = how.crop_size, how.resize_size
    # Their own first step makes of pixels that are normalised by ImageNet's figures what these would; the server builds
    # them without it.
    mean, std = ((0.5,) * 3, (0.5,) * 3) if builder in AUXILIARY else (tuple(how.mean), tuple(how.std))
    return {
        "architecture": builder,
        "classes": list(chosen.meta["categories"]),
        "input_size": crop,
        "resize": resize,
        "interpolation": methods[how.interpolation],
        "mean": mean,
        "std": std,
    }

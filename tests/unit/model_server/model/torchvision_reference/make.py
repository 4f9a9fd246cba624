"""Makes the images of this directory and what torchvision makes of them: `python3 make.py` where torchvision is.

Debian 12's packages are enough (python3-torchvision 0.14.1, python3-pil 9.4). For each image it writes the
picture `NAME.jpg`, and `NAME.png`: the pixels after Resize, CenterCrop and ToTensor, times 255. `logits.json`
has the outputs of the published layers, of seeded random weights, for the normalised pixels.
"""

import json
import sys
from pathlib import Path
from random import Random
from typing import Any, Dict, List, Tuple

import PIL
import torch
from PIL import Image
from torch.nn import functional

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[4]))

from model_server.commands.drawings import FRUITS, draw_fruit  # noqa: E402

SIZE = 150
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# The keys and shapes of the published fruit_classifier_state_dict.pt.
SHAPES = {
    "conv1.weight": (6, 3, 5, 5),
    "conv1.bias": (6,),
    "conv2.weight": (16, 6, 5, 5),
    "conv2.bias": (16,),
    "fc1.weight": (120, 18496),
    "fc1.bias": (120,),
    "fc2.weight": (84, 120),
    "fc2.bias": (84,),
    "fc3.weight": (3, 84),
    "fc3.bias": (3,),
}
# Width, height, mode and options of the JPEG.
PICTURES: List[Tuple[int, int, str, Dict[str, Any]]] = [
    (100, 100, "RGB", {}),
    (120, 400, "RGB", {"quality": 90}),
    (150, 150, "RGB", {"quality": 95, "subsampling": 0}),
    (151, 150, "RGB", {"subsampling": 2}),
    (301, 299, "RGB", {"progressive": True}),
    (300, 450, "L", {"quality": 85}),
    (333, 500, "CMYK", {"quality": 85}),
    (480, 640, "RGB", {"quality": 85}),
    (640, 480, "RGB", {"quality": 85, "subsampling": 1}),
    (800, 600, "L", {"progressive": True}),
    (900, 675, "RGB", {"quality": 30}),
    (90, 1500, "RGB", {}),
    (1500, 90, "RGB", {}),
    (1023, 767, "RGB", {"progressive": True, "quality": 60}),
    (1600, 1200, "CMYK", {"quality": 50}),
    (400, 4000, "RGB", {"quality": 60}),
    (4000, 400, "RGB", {"quality": 60}),
    (3000, 4000, "RGB", {"quality": 40}),
]


def published_weights() -> Dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in SHAPES.items()}


def forward(state: Dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    for layer in ("conv1", "conv2"):
        x = functional.conv2d(x, state[f"{layer}.weight"], state[f"{layer}.bias"])
        x = functional.max_pool2d(functional.relu(x), 2)
    x = functional.relu(functional.linear(x.flatten(1), state["fc1.weight"], state["fc1.bias"]))
    x = functional.relu(functional.linear(x, state["fc2.weight"], state["fc2.bias"]))
    return functional.linear(x, state["fc3.weight"], state["fc3.bias"])


def main() -> None:
    import torchvision
    from torchvision import transforms

    pixels = transforms.Compose([transforms.Resize(SIZE), transforms.CenterCrop(SIZE), transforms.ToTensor()])
    normalise = transforms.Normalize(MEAN, STD)
    state = published_weights()
    logits = {}
    for number, (width, height, mode, options) in enumerate(PICTURES):
        fruit = list(FRUITS)[number % len(FRUITS)]
        name = f"{fruit}_{width}x{height}_{mode.lower()}"
        # Large ones are enlarged from smaller ones: their noise would make megabytes.
        shrink = max(1, max(width, height) // 700)
        drawn = draw_fruit(fruit, Random(name), max(32, width // shrink), max(32, height // shrink))
        picture = drawn.resize((width, height), Image.Resampling.BICUBIC).convert(mode)
        picture.save(HERE / f"{name}.jpg", "JPEG", **options)
        square = pixels(Image.open(HERE / f"{name}.jpg").convert("RGB"))
        transforms.functional.to_pil_image(square).save(HERE / f"{name}.png", optimize=True)
        with torch.no_grad():
            logits[name] = [round(value, 6) for value in forward(state, normalise(square)[None])[0].tolist()]
    made_by = {"torch": torch.__version__, "torchvision": torchvision.__version__, "pillow": PIL.__version__}
    text = json.dumps({"made_by": made_by, "logits": logits}, indent=1)
    (HERE / "logits.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

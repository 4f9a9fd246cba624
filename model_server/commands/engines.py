"""Chooses what runs the model of a new bundle, and how many images it classifies together.

Each way is proved on drawings before it counts: its logits must be those of torch.
"""

import math
import time
from random import Random
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, NamedTuple, Sequence

from model_server.commands import CommandError
from model_server.commands.classifier import export, load_classifier
from model_server.commands.drawings import FRUITS, draw_fruit
from model_server.model.bundle import (
    EXPORTS,
    FRUIT_CLASSIFIER,
    LARGEST_BATCH,
    TORCH,
    TORCHSCRIPT,
    Bundle,
    BundleError,
    make_bundle,
)

if TYPE_CHECKING:  # the import of torch takes seconds
    from torch import Tensor

    from model_server.model.classifier import Classifier

DRAWINGS = 8
TOLERANCE = 1e-4  # of a logit, to the largest of its image
WORTH_IT = 0.9  # a batch or another engine must take this share of the time at most
ROUNDS = 3


class Choice(NamedTuple):
    """What is written into the bundle.

    Attributes:
        fields: of the manifest: `engine` and `batch_size`; none where there is no choice.
        exports: the exported model, by its engine.
        classifier: that runs so.
    """

    fields: Dict[str, object]
    exports: Mapping[str, bytes]
    classifier: "Classifier"


def choose(bundle: Bundle, wanted: str, say: Callable[[str], None]) -> Choice:
    """Choose the fastest engine that gives torch's logits, and batches if they are worth it.

    Args:
        bundle: that is to be written.
        wanted: the engine that is to be chosen; empty: the fastest.
        say: is told what was found.

    Raises:
        BundleError: the bundle cannot be served by torch.
        CommandError: the wanted engine cannot serve it.
    """
    torch = load_classifier(bundle, TORCH)
    if bundle.manifest.architecture in (FRUIT_CLASSIFIER, TORCHSCRIPT):
        if wanted in EXPORTS:
            raise CommandError(
                f"{bundle.manifest.architecture} is served by torch alone: --engine {wanted} is for the "
                "architectures of torchvision."
            )
        return Choice({}, {}, torch)
    images = _draw(torch)
    expected = [torch.logits(image) for image in images]
    best = _measure(torch, images, expected)
    say(f"tried:        {TORCH}: {best}")
    choice = Choice({"engine": TORCH, "batch_size": best.batch_size}, {}, torch)
    for engine in () if wanted == TORCH else (wanted,) if wanted else EXPORTS:
        try:
            exported = export(bundle, engine)
            other = load_classifier(_with(bundle, engine, exported, 1), engine)
            _prove(other, images, expected)
        except (BundleError, CommandError) as error:
            if wanted:
                raise
            say(f"not chosen:   {engine}: {error}")
            continue
        found = _measure(other, images, expected)
        say(f"tried:        {engine}: {found}")
        if wanted or (found.single < WORTH_IT * best.single and found.batched <= best.batched):
            best = found
            classifier = load_classifier(_with(bundle, engine, exported, found.batch_size), engine)
            choice = Choice({"engine": engine, "batch_size": found.batch_size}, {engine: exported}, classifier)
    return choice


class _Figures(NamedTuple):
    single: float  # seconds of an image alone
    batched: float  # of one in a batch, the same where batches are not worth it
    batch_size: int

    def __str__(self) -> str:
        batches = f", {1e3 * self.batched:.1f} ms in batches of {self.batch_size}" if self.batch_size > 1 else ""
        return f"{1e3 * self.single:.1f} ms for an image{batches}"


def _with(bundle: Bundle, engine: str, exported: bytes, batch_size: int) -> Bundle:
    fields = {
        **bundle.manifest.model_dump(exclude={"weights_sha256"}),
        "engine": engine,
        "batch_size": batch_size,
    }
    made = make_bundle(bundle.path, bundle.weights, fields, {engine: exported})
    return made._replace(weights_path=bundle.weights_path)


def _draw(classifier: "Classifier") -> "List[Tensor]":
    chance, names = Random("engines"), sorted(FRUITS)
    drawings = [draw_fruit(names[number % len(names)], chance, 320, 240) for number in range(DRAWINGS)]
    return [classifier.preprocess(drawing) for drawing in drawings]


def _prove(classifier: "Classifier", images: "Sequence[Tensor]", expected: "Sequence[Tensor]", size: int = 1) -> None:
    """Compare the logits of images, `size` together, with the expected ones.

    Raises:
        CommandError: they differ too much.
    """
    for begin in range(0, len(images) - size + 1, size):
        for logits, right in zip(classifier.logits_of_batch(images[begin : begin + size]), expected[begin:]):
            difference = float((logits - right).abs().max() / right.abs().max().clamp_min(1e-30))
            if not difference <= TOLERANCE or int(logits.argmax()) != int(right.argmax()):
                raise CommandError(
                    f"The engine {classifier.engine} gives other logits than {TORCH}: they differ by {difference:.1e} "
                    f"of the largest, and {TOLERANCE:.0e} is allowed."
                )


def _measure(classifier: "Classifier", images: "Sequence[Tensor]", expected: "Sequence[Tensor]") -> _Figures:
    """Return what an image takes alone and in a batch, and how large batches are worth it."""
    sizes = [1, LARGEST_BATCH] if _can_batch(classifier, images, expected) else [1]
    times: Dict[int, List[float]] = {size: [] for size in sizes}
    for _ in range(ROUNDS):  # in turns, so that what else the machine does meets both
        for size, seconds in times.items():
            begun = time.process_time()
            classifier.logits_of_batch(images[:size])
            seconds.append((time.process_time() - begun) / size)
    fastest = {size: min(seconds) for size, seconds in times.items()}
    size = LARGEST_BATCH if fastest.get(LARGEST_BATCH, math.inf) < WORTH_IT * fastest[1] else 1
    return _Figures(fastest[1], fastest[size], size)


def _can_batch(classifier: "Classifier", images: "Sequence[Tensor]", expected: "Sequence[Tensor]") -> bool:
    try:
        for _ in range(2):  # TorchScript is another program in its second run
            for size in range(1, LARGEST_BATCH + 1):
                _prove(classifier, images, expected, size)
    except Exception:  # a network that takes one image only can raise anything, or answers with other logits
        return False
    return True

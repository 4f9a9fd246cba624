"""`model-server train-demo`: trains the fruit classifier on drawn fruits and writes it as a bundle.

The same seed gives the same bytes: one thread, fixed order, deterministic algorithms.
"""

import math
import time
from pathlib import Path
from random import Random
from typing import Dict, List, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_server.commands import CommandError
from model_server.commands.drawings import FRUITS, draw_fruit
from model_server.metrics.features import observe
from model_server.model.accuracy import Accuracy, measure
from model_server.model.bundle import FRUIT_CLASSIFIER, Findings, make_bundle, refuse_existing, write_bundle
from model_server.model.classifier import Classifier
from model_server.model.fruit_classifier import FruitClassifier
from model_server.model.loading import to_safetensors
from model_server.model.preprocessing import Scaling, resize_and_crop
from model_server.model.reference import Reference, build

CLASSES = tuple(FRUITS)
INPUT_SIZE = 150
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, as the published weights expect
TRAINING_IMAGES, HELD_OUT_IMAGES = 600, 600  # the latter are the bundle's reference as well
EPOCHS, BATCH = 3, 20
LEARNING_RATE = 1e-3
LOWEST_ACCURACY = 0.97


def draw_images(count: int, rng: Random) -> Tuple[Tensor, Tensor]:
    """Draw `count` fruits of various sizes, the classes in turn, and preprocess them as the server does.

    Returns:
        Pixels, float32 of shape (count, 3, 150, 150), values 0..255, and labels, int64 of shape (count,).
    """
    pixels = bytearray()
    for index in range(count):
        width, height = rng.randrange(150, 260), rng.randrange(150, 260)
        picture = draw_fruit(CLASSES[index % len(CLASSES)], rng, width, height)
        pixels += resize_and_crop(picture, Scaling(INPUT_SIZE)).tobytes()
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(count, INPUT_SIZE, INPUT_SIZE, 3)
    return images.permute(0, 3, 1, 2).float(), torch.arange(count) % len(CLASSES)


def normalise(pixels: Tensor) -> Tensor:
    """Shift and scale pixels of 0..255 to what the network learns from."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    normalised: Tensor = (pixels / 255 - mean) / std
    return normalised


def train(seed: int) -> Tuple[nn.Module, float, Tensor, Tensor]:
    """Train a classifier, with progress on standard output.

    Returns:
        The model, its accuracy (0..1) on drawings that it was not trained on, and the pixels and labels of these.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)

    _say(f"drawing {TRAINING_IMAGES} images to learn from and {HELD_OUT_IMAGES} to be judged by")
    pixels, labels = draw_images(TRAINING_IMAGES, Random(f"{seed} training"))
    held_out, answers = draw_images(HELD_OUT_IMAGES, Random(f"{seed} held out"))
    images, questions = normalise(pixels), normalise(held_out)

    # Convolutions are faster with the channels last in memory, as the images are.
    model = FruitClassifier(len(CLASSES), INPUT_SIZE).to(memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    steps = EPOCHS * math.ceil(TRAINING_IMAGES / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=LEARNING_RATE, total_steps=steps)
    for epoch in range(1, EPOCHS + 1):
        started, total = time.monotonic(), 0.0
        model.train()
        for index, batch in enumerate(torch.randperm(TRAINING_IMAGES).split(BATCH)):
            seen = images[batch].flip(3) if index % 2 else images[batch]  # a mirrored fruit is the same fruit
            optimiser.zero_grad()
            loss = functional.cross_entropy(model(seen), labels[batch])
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item() * len(batch)
        accuracy = _accuracy(model, questions, answers)
        seconds = time.monotonic() - started
        loss_mean = total / TRAINING_IMAGES
        _say(f"epoch {epoch}/{EPOCHS}: loss {loss_mean:.3f}, held-out accuracy {accuracy:.1%} ({seconds:.1f} s)")
    return model.to(memory_format=torch.contiguous_format).eval(), accuracy, held_out, answers


def refer(classifier: Classifier, pixels: Tensor) -> Reference:
    """Describe drawings of shape (N, 3, 150, 150) that the model was not trained on: of those it would be too sure."""
    return build([observe(drawing, *classifier.classify(drawing)) for drawing in pixels.split(1)], CLASSES)


def judge(classifier: Classifier, pixels: Tensor, labels: Tensor) -> Accuracy:
    """Measure the accuracy by confidence on the same drawings; `labels` are their classes, of shape (N,)."""
    answers = [classifier.classify(drawing) for drawing in pixels.split(1)]
    truths = [CLASSES[label] for label in labels.tolist()]
    rights = [answer.likely_class == truth for answer, truth in zip(answers, truths)]
    judged = zip((answer.confidence for answer in answers), rights)
    return measure(judged, classifier.manifest.weights_sha256)


def write_demo_bundle(path: Path, seed: int) -> None:
    """Train a model and write it as a bundle at `path`, where nothing may be.

    Raises:
        BundleError: there is something at `path`, or it cannot be written.
        CommandError: the model did not learn enough to be served.
    """
    refuse_existing(path)
    model, accuracy, held_out, answers = train(seed)
    if accuracy < LOWEST_ACCURACY:
        raise CommandError(
            f"The model reached {accuracy:.1%} on held-out drawings, but {LOWEST_ACCURACY:.0%} are needed."
        )
    weights = to_safetensors(model.state_dict())
    fields: Dict[str, object] = {
        "name": "drawn-fruits",
        "version": f"1.{seed}",
        "architecture": FRUIT_CLASSIFIER,
        "classes": CLASSES,
        "input_size": INPUT_SIZE,
        "mean": MEAN,
        "std": STD,
    }
    classifier = Classifier(make_bundle(path, weights, fields))
    reference, judged = refer(classifier, held_out), judge(classifier, held_out, answers)
    write_bundle(path, weights, fields, Findings(reference, judged))
    _say(f"accuracy {accuracy:.1%} on held-out drawings; bundle written to {path}")


def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.inference_mode():
        hits: List[Tensor] = [
            model(part).argmax(1) == answers for part, answers in zip(images.split(BATCH), labels.split(BATCH))
        ]
    accuracy: float = torch.cat(hits).float().mean().item()
    return accuracy


def _say(line: str) -> None:
    print(f"train-demo: {line}", flush=True)  # noqa: T201 - a command's progress

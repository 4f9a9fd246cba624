"""Users' own models: networks of torchvision, beside the lab's app and LitServe with the same: `script/bench models`.

`python -m benchmarks.models NAME DIRECTORY DRAWINGS CLASS...` writes the bundle of a network with random weights, and
prints how its logits and classes differ from torchvision's on so many drawings, as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import geometric_mean, median, quantiles
from typing import Any, Dict, List, Sequence

from benchmarks import loop, metrics
from benchmarks.figures import Bar, judge, show
from benchmarks.images import memory
from benchmarks.load import Connection, multipart, one_by_one, photo, predict
from benchmarks.servers import REPOSITORY, WITH_TORCHVISION, System, lab, litserve, ours, running

CLASSES = ("apple", "grapes", "lemon")
SIZE = 224
IMAGES = REPOSITORY / "load_test" / "images"
WARM_UP = 3  # seconds
CONNECTIONS, CROWD = 16, 64
CROWDED_NETWORK = "resnet18"
MANY = [f"class-{number:04}" for number in range(1000)]
MANY_NETWORK = "mobilenet_v3_small"
SCRAPES = 400
PHOTOS = 20

# The bar of a request's CPU time to the lab's, and how many drawings the classes are compared on: the last takes half a
# second for each.
NETWORKS = {
    "resnet18": (0.6, 1000),
    "mobilenet_v3_small": (0.4, 1000),
    "efficientnet_b0": (0.45, 1000),
    "vit_b_16": (0.95, 100),
}
BARS = (
    *(
        Bar(f"CPU time of a request, {name}, to the lab's", bar, "lower", "ratio")
        for name, (bar, _) in NETWORKS.items()
    ),
    Bar("CPU time of a request, geometric mean, to the lab's", 0.52, "lower", "ratio"),
    Bar("the same, to LitServe's", 0.6, "lower", "ratio"),
    Bar("the same, to a loop without HTTP", 1.1, "lower", "ratio"),
    Bar("p99 at 64 connections, to the turn of all", 1.3, "lower", "ratio"),
    Bar("logits, largest difference to the eager network's", 1e-4, "lower", "ratio"),
    Bar("drawings of another class than the eager network's", 0, "lower", "images"),
    Bar("12-megapixel photo, exact, p50, to the lab's", 0.6, "lower", "ratio"),
    Bar("memory of a worker for this photo, above idle", 150, "lower", "MB"),
    Bar("page of 4 workers with 1,000 classes", 2000, "lower", "samples"),
    Bar("a scrape of it, p99", 0.01, "lower", "s"),
)


def measure(image: Path, rounds: int, seconds: int) -> bool:
    """Print the figures, and return whether all bars are met."""
    values: Dict[str, float] = {}
    ratios: Dict[str, List[float]] = defaultdict(list)
    differences, others = [], 0
    for name, (_, drawings) in NETWORKS.items():
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            bundle = Path(folder) / "bundle"
            made = _make(name, bundle, CLASSES, drawings)
            measured = _in_turns(name, bundle, image, rounds, seconds)
        differences.append(made["difference"])
        others += made["others"]
        cpu = {key: median(measured[f"{key} cpu"]) for key in (name, "lab", "LitServe", "loop")}
        for key in ("lab", "LitServe", "loop"):
            ratios[key].append(cpu[name] / cpu[key])
        values[f"CPU time of a request, {name}, to the lab's"] = ratios["lab"][-1]
        if name == CROWDED_NETWORK:
            values["p99 at 64 connections, to the turn of all"] = median(measured["crowd"])
        print(
            f"{name:<20} {1e3 * cpu[name]:6.1f} ms CPU per request; lab {1e3 * cpu['lab']:6.1f}, LitServe "
            f"{1e3 * cpu['LitServe']:6.1f}, loop {1e3 * cpu['loop']:6.1f}; {made['engine']}, batches of "
            f"{made['batch_size']}; {median(measured[f'{name} memory']) / 1e6:.0f} MB, lab "
            f"{median(measured['lab memory']) / 1e6:.0f}; logits differ by {made['difference']:.1e}, "
            f"classes of {made['others']} in {drawings} drawings",
            flush=True,
        )
    values["CPU time of a request, geometric mean, to the lab's"] = geometric_mean(ratios["lab"])
    values["the same, to LitServe's"] = geometric_mean(ratios["LitServe"])
    values["the same, to a loop without HTTP"] = geometric_mean(ratios["loop"])
    values["logits, largest difference to the eager network's"] = max(differences)
    values["drawings of another class than the eager network's"] = others
    values.update(_photo(rounds))
    values.update(_page_of_many_classes(image.read_bytes()))
    return show(judge(values, BARS))


def _in_turns(name: str, bundle: Path, image: Path, rounds: int, seconds: int) -> Dict[str, List[float]]:
    """Return one value per round of each system, and of the loop of the same engine.

    Raises:
        RuntimeError: they do not give the same class.
    """
    systems = (lab(bundle, name), litserve(bundle, name), _ours(name, bundle))
    measured: Dict[str, List[float]] = defaultdict(list)
    for _ in range(rounds):
        answers = {system.name: _load(system, image.read_bytes(), seconds, measured) for system in systems}
        cpu, answers["loop"] = loop.measure("exact", image, seconds / 2, bundle)
        measured["loop cpu"].append(cpu)
        if len(set(answers.values())) > 1:
            raise RuntimeError(f"Not all say the same: {answers}.")
    return measured


def _load(system: System, image: bytes, seconds: int, measured: Dict[str, List[float]]) -> str:
    with running(system, image) as server:
        # Before the load: after it, the lab's app still answers what wrk has given up.
        likely_class: str = json.loads(Connection(server.url).predict(multipart(image)))["likely_class"]
        idle = server.busy()
        predict(server.url, image, CONNECTIONS, WARM_UP)
        server.settle(idle)
        before = server.cpu_seconds()
        requests = predict(server.url, image, CONNECTIONS, seconds).requests
        measured[f"{system.name} cpu"].append((server.cpu_seconds() - before) / requests)
        if system.name == CROWDED_NETWORK:
            crowd = predict(server.url, image, CROWD, seconds)
            measured["crowd"].append(crowd.p99 * crowd.rate / CROWD)
        measured[f"{system.name} memory"].append(server.pss_bytes())
    return likely_class


def _ours(name: str, bundle: Path) -> System:
    own = ours(name, bundle, max_queue_seconds="100")
    return replace(own, environment={**own.environment, **WITH_TORCHVISION})


def _photo(rounds: int) -> Dict[str, float]:
    """Return what a photo takes with the demonstration's network."""
    large = photo()
    measured: Dict[str, List[float]] = defaultdict(list)
    for _ in range(rounds):
        for key, system in (("lab", lab()), ("ours", ours("exact"))):
            with running(system, large, workers=1) as server:
                measured[key].append(median(one_by_one(server.url, large, PHOTOS)))
        with running(ours("exact"), (IMAGES / "apple_640x480.jpg").read_bytes(), workers=1) as server:
            worker = server.processes()[1]
            idle = memory("VmRSS", worker)
            one_by_one(server.url, large, PHOTOS)
            measured["memory"].append(memory("VmHWM", worker) - idle)
    return {
        "12-megapixel photo, exact, p50, to the lab's": median(measured["ours"]) / median(measured["lab"]),
        "memory of a worker for this photo, above idle": median(measured["memory"]),
    }


def _page_of_many_classes(image: bytes) -> Dict[str, float]:
    """Return how many samples the page has under load, and the p99 of its scrapes in seconds."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bundle = Path(folder) / "bundle"
        _make(MANY_NETWORK, bundle, MANY, 0)
        with running(_ours(MANY_NETWORK, bundle), image, metrics.WORKERS) as server:
            seconds = metrics.scrape(server, [multipart(image)], SCRAPES)
            page = Connection(server.url).scrape().decode()
    return {
        "page of 4 workers with 1,000 classes": sum(not line.startswith("#") for line in page.splitlines()),
        "a scrape of it, p99": quantiles(seconds, n=100)[98],
    }


def _make(name: str, bundle: Path, classes: Sequence[str], drawings: int) -> Dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.models", name, str(bundle), str(drawings), *classes]
    environment = {**os.environ, **WITH_TORCHVISION}
    printed = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, check=True).stdout
    found: Dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def main() -> None:
    warnings.simplefilter("ignore")  # torchvision's decoders lack their libraries
    import torch  # noqa: PLC0415
    from torchvision.models import get_model  # noqa: PLC0415

    from model_server.commands.cli import main as model_server  # noqa: PLC0415
    from model_server.commands.drawings import FRUITS, draw_fruit  # noqa: PLC0415
    from model_server.model.bundle import read_bundle  # noqa: PLC0415
    from model_server.model.classifier import Classifier  # noqa: PLC0415
    from model_server.model.loading import to_safetensors  # noqa: PLC0415

    name, bundle, drawings, classes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    torch.manual_seed(0)
    network = get_model(name, weights=None, num_classes=len(classes)).eval()
    for parameter in network.parameters():
        if not parameter.any():  # the last layer of a vision transformer: all logits would be 0
            torch.nn.init.normal_(parameter, std=0.02)
    weights = bundle.with_name("trained.safetensors")
    weights.write_bytes(to_safetensors(network.state_dict()))
    arguments = ["bundle", "create", str(bundle), "--weights", str(weights), "--name", name, "--version", "1.0"]
    model_server([*arguments, "--architecture", name, "--input-size", str(SIZE), "--classes", *classes])
    model_server(["reference", "--bundle", str(bundle), str(IMAGES)])  # so that the page has the series of drift, too

    classifier = Classifier(read_bundle(bundle))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (classifier.manifest.mean, classifier.manifest.std))
    chance = Random(name)
    difference, others = 0.0, 0
    for number in range(drawings):
        pixels = classifier.preprocess(draw_fruit(list(FRUITS)[number % len(FRUITS)], chance, 320, 240))
        with torch.no_grad():
            expected = network((pixels / 255 - mean) / std)[0]
        logits = classifier.logits(pixels)
        difference = max(difference, float((logits - expected).abs().max() / expected.abs().max()))
        others += int(logits.argmax() != expected.argmax())
    found = {"difference": difference, "others": others}
    print(json.dumps({**found, "engine": classifier.engine, "batch_size": classifier.batch_size}))


if __name__ == "__main__":
    main()

"""Users' own models: networks of torchvision beside the lab's app with the same network: `script/bench models`.

`python -m benchmarks.models NAME DIRECTORY CLASS...` writes the bundle of a network with random weights, and prints how
its logits differ from torchvision's, as JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean, median, quantiles
from typing import Any, Dict, List, Sequence, Tuple

from benchmarks import metrics
from benchmarks.load import Connection, multipart, predict
from benchmarks.servers import REPOSITORY, TORCHVISION, System, lab, ours, running

NETWORKS = ("resnet18", "mobilenet_v3_small", "efficientnet_b0", "vit_b_16")
CLASSES = ("apple", "grapes", "lemon")
SIZE = 224
IMAGES = REPOSITORY / "load_test" / "images"
BAR = 0.52  # geometric mean of the CPU times of a request, to the lab's
TOLERANCE = 1e-4  # of a logit, to the largest
WARM_UP = 3  # seconds
CONNECTIONS = 16
MANY = [f"class-{number:04}" for number in range(1000)]
MANY_NETWORK = "mobilenet_v3_small"
PAGE_SAMPLES, PAGE_P99 = 2000, 0.01  # bars: of a page of metrics.WORKERS workers with many classes; seconds
SCRAPES = 400


def measure(image: Path, rounds: int, seconds: int) -> bool:
    """Print the CPU time of a request with each network to the lab's, and return whether their mean meets the bar."""
    ratios: List[float] = []
    equal = True
    for name in NETWORKS:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            bundle = Path(folder) / "bundle"
            made = _make(name, bundle, CLASSES)
            systems = {"lab": lab(bundle, name), "ours": _ours(name, bundle)}
            cpu: Dict[str, List[float]] = {key: [] for key in systems}
            memory: Dict[str, List[float]] = {key: [] for key in systems}
            answers = set()
            for _ in range(rounds):
                for key, system in systems.items():
                    answers.add(_load(system, image.read_bytes(), seconds, cpu[key], memory[key]))
        is_equal = made["difference"] <= TOLERANCE and len(answers) == 1
        equal = equal and is_equal
        ratios.append(median(cpu["ours"]) / median(cpu["lab"]))
        print(
            f"{name:<20} {1e3 * median(cpu['ours']):6.1f} ms CPU per request, lab {1e3 * median(cpu['lab']):6.1f}: "
            f"{ratios[-1]:.3f}; {made['engine']}, batches of {made['batch_size']}; "
            f"{median(memory['ours']) / 1e6:.0f} MB, lab {median(memory['lab']) / 1e6:.0f}; "
            f"logits differ by {made['difference']:.1e}, {'as they may' if is_equal else 'TOO MUCH'}",
            flush=True,
        )
    mean = geometric_mean(ratios)
    print(f"geometric mean {mean:.3f}, at most {BAR}: {'met' if mean <= BAR else 'MISSED'}")
    samples, p99 = _page_of_many_classes(image.read_bytes())
    is_cheap = samples <= PAGE_SAMPLES and p99 <= PAGE_P99
    print(
        f"page of {metrics.WORKERS} workers with {len(MANY)} classes: {samples} samples, at most {PAGE_SAMPLES}; "
        f"p99 {1e3 * p99:.1f} ms, at most {1e3 * PAGE_P99:.0f}: {'met' if is_cheap else 'MISSED'}"
    )
    return equal and mean <= BAR and is_cheap


def _ours(name: str, bundle: Path) -> System:
    own = ours(name, bundle, max_queue_seconds="100")
    return replace(own, environment={**own.environment, "PYTHONPATH": str(TORCHVISION)})


def _page_of_many_classes(image: bytes) -> Tuple[int, float]:
    """Return how many samples the page has under load, and the p99 of its scrapes in seconds."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bundle = Path(folder) / "bundle"
        _make(MANY_NETWORK, bundle, MANY)
        with running(_ours(MANY_NETWORK, bundle), image, metrics.WORKERS) as server:
            seconds = metrics.scrape(server, [multipart(image)], SCRAPES)
            page = Connection(server.url).scrape().decode()
    return sum(not line.startswith("#") for line in page.splitlines()), quantiles(seconds, n=100)[98]


def _make(name: str, bundle: Path, classes: Sequence[str]) -> Dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.models", name, str(bundle), *classes]
    environment = {**os.environ, "PYTHONPATH": str(TORCHVISION)}
    printed = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, check=True).stdout
    found: Dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def _load(system: System, image: bytes, seconds: int, cpu: List[float], memory: List[float]) -> str:
    with running(system, image) as server:
        # Before the load: after it, the lab's app still answers what wrk has given up.
        likely_class: str = json.loads(Connection(server.url).predict(multipart(image)))["likely_class"]
        predict(server.url, image, CONNECTIONS, WARM_UP)
        before = server.cpu_seconds()
        requests = predict(server.url, image, CONNECTIONS, seconds).requests
        cpu.append((server.cpu_seconds() - before) / requests)
        memory.append(server.pss_bytes())
    return likely_class


def main() -> None:
    warnings.simplefilter("ignore")  # torchvision's decoders lack their libraries
    import torch  # noqa: PLC0415
    from torchvision.models import get_model  # noqa: PLC0415

    from model_server.commands.cli import main as model_server  # noqa: PLC0415
    from model_server.model.bundle import read_bundle  # noqa: PLC0415
    from model_server.model.classifier import Classifier  # noqa: PLC0415
    from model_server.model.loading import to_safetensors  # noqa: PLC0415

    name, bundle, classes = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
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
    pixels = torch.randint(0, 256, (1, 3, SIZE, SIZE)).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (classifier.manifest.mean, classifier.manifest.std))
    with torch.no_grad():
        expected = network((pixels / 255 - mean) / std)[0]
    difference = float((classifier.logits(pixels) - expected).abs().max() / expected.abs().max())
    found = {"difference": difference, "engine": classifier.engine, "batch_size": classifier.batch_size}
    print(json.dumps(found))


if __name__ == "__main__":
    main()

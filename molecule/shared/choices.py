"""Chooses what a rehearsal is made of, from what this machine can reach, and prints it as JSON.

Run as `python choices.py IMAGE WHEELS`, where IMAGE is the base image, and WHEELS a directory that keeps a wheel
which had to be fetched. The real thing is taken where it can be had; what stands in for it is named under `shown`,
which the caller puts on the screen.
"""

from __future__ import annotations

import configparser
import hashlib
import io
import json
import platform
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

GRAFANA_REPOSITORY = "https://apt.grafana.com/gpg.key"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu/torch/"
# The last release on PyPI whose wheel has all that it needs, CUDA's libraries included: 776 MB, for Python 3.7 to 3.10.
WHOLE_TORCH = "1.12.1"
# Options of pip that mean the same inside a container as on this machine; paths do not.
PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout")
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - the two constants above
            return True
    except (urllib.error.URLError, TimeoutError, OSError):
        return False


def version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()  # noqa: S603


def pip_options() -> dict[str, list[str]]:
    """Pip's configuration on this machine: option → its words, the environment's beside the files'."""
    options: dict[str, list[str]] = {}
    for line in output(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        options.setdefault(name.rpartition(".")[2], []).extend(value.strip("'\"").split())
    return options


def pip_conf(options: dict[str, list[str]]) -> str:
    """The part of pip's configuration that holds inside a container too, as the text of a pip.conf."""
    parser = configparser.RawConfigParser()
    parser["global"] = {"cert": CA_BUNDLE}
    for name in PIP_OPTIONS:
        words = [word for word in options.get(name, []) if not word.startswith(("/", "file:"))]
        if words:
            parser["global"][name] = " ".join(dict.fromkeys(words))
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()


def find_torch_wheels(options: dict[str, list[str]], python: str) -> list[Path]:
    """The torch wheels for `python` ("3.11") in the first directory among pip's find-links that holds one."""
    tag = f"cp{python.replace('.', '')}"
    for place in options.get("find-links", []):
        wheels = sorted(Path(place.removeprefix("file://")).glob(f"torch-*-{tag}-*_{platform.machine()}.whl"))
        if wheels:
            return wheels
    return []


def fetch_whole_torch(python: str, wheels: Path) -> list[Path]:
    """Fetch PyPI's wheel for `python` unless it is there already."""
    wheels.mkdir(parents=True, exist_ok=True)
    tag, machine = f"cp{python.replace('.', '')}", platform.machine()
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    platforms = [f"--platform={policy}_{machine}" for policy in ("manylinux1", "manylinux2014")]
    output(*pip, f"--python-version={python}", *platforms, f"--dest={wheels}", f"torch=={WHOLE_TORCH}")
    return sorted(wheels.glob(f"torch-{WHOLE_TORCH}-{tag}-*_{machine}.whl"))


def choose(image: str, kept_wheels: Path) -> dict[str, object]:
    python = output(
        "docker", "run", "--rm", image, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"
    )
    options = pip_options()
    torch_wheels = find_torch_wheels(options, python)
    torch_version = ""  # the role's own choice
    shown = [f"base image: {image}" + ("" if ":ubuntu-20.04" in image else " stands in for ubuntu:20.04")]
    torch_source = "pip"
    if torch_wheels:
        shown.append("torch: the CPU wheel in this machine's wheel directory (pip's find-links)")
    elif answers(TORCH_INDEX):
        shown.append("torch: PyTorch's CPU wheel index")
    elif version(python) < version("3.11"):  # whose distribution's torch is too old for the role
        torch_version = WHOLE_TORCH
        torch_wheels = fetch_whole_torch(python, kept_wheels)
        shown.append(
            f"torch: {torch_version} of PyPI STANDS IN for the role's release, "
            f"whose CPU wheel for Python {python} cannot be had here"
        )
    else:
        torch_source = "distro"
        shown.append("torch: the distribution's package stands in for PyTorch's CPU wheel, which cannot be had here")
    grafana_stand_in = not answers(GRAFANA_REPOSITORY)
    shown.append(
        "grafana: a STAND-IN package, because Grafana's repository does not answer"
        if grafana_stand_in
        else "grafana: Grafana's own repository"
    )
    wheels = str(torch_wheels[0].parent) if torch_wheels else ""
    return {
        "base_image": image,
        "shown": shown,
        "torch_source": torch_source,
        "torch_version": torch_version,
        "torch_find_links": wheels,
        "torch_hashes": [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in torch_wheels],
        "volumes": [f"{wheels}:{wheels}:ro"] if wheels else [],
        "grafana_stand_in": grafana_stand_in,
        "pip_conf": pip_conf(options),
    }


if __name__ == "__main__":
    json.dump(choose(sys.argv[1], Path(sys.argv[2]).resolve()), sys.stdout, indent=2)

"""Chooses what a rehearsal is made of, from what this machine can reach, and prints it as JSON.

Run as `python choices.py IMAGE`, where IMAGE is the base image. The real thing is taken where it can be
had; what stands in for it is named under `shown`, which the caller puts on the screen.
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
# Options of pip that mean the same inside a container as on this machine; paths do not.
PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout")
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - the two constants above
            return True
    except (urllib.error.URLError, TimeoutError, OSError):
        return False


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


def choose(image: str) -> dict[str, object]:
    python = output(
        "docker", "run", "--rm", image, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"
    )
    options = pip_options()
    torch_wheels = find_torch_wheels(options, python)
    wheels = str(torch_wheels[0].parent) if torch_wheels else ""
    shown = [f"base image: {image}" + ("" if ":ubuntu-20.04" in image else " stands in for ubuntu:20.04")]
    torch_source = "pip"
    if wheels:
        shown.append("torch: the CPU wheel in this machine's wheel directory (pip's find-links)")
    elif answers(TORCH_INDEX):
        shown.append("torch: PyTorch's CPU wheel index")
    else:
        torch_source = "distro"
        shown.append("torch: the distribution's package stands in for PyTorch's CPU wheel, which cannot be had here")
    grafana_stand_in = not answers(GRAFANA_REPOSITORY)
    shown.append(
        "grafana: a STAND-IN package, because Grafana's repository does not answer"
        if grafana_stand_in
        else "grafana: Grafana's own repository"
    )
    return {
        "base_image": image,
        "shown": shown,
        "torch_source": torch_source,
        "torch_find_links": wheels,
        "torch_hashes": [hashlib.sha256(wheel.read_bytes()).hexdigest() for wheel in torch_wheels],
        "volumes": [f"{wheels}:{wheels}:ro"] if wheels else [],
        "grafana_stand_in": grafana_stand_in,
        "pip_conf": pip_conf(options),
    }


if __name__ == "__main__":
    json.dump(choose(sys.argv[1]), sys.stdout, indent=2)

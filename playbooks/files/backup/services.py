"""What is copied of each service, and where it is."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Iterator, NamedTuple

from . import BackupError

COPY = ".backup"  # in each place while a backup runs, so that hard links are possible: they need the same file system
WORK = ".restore"  # in each place while a restore runs: renames need it, too
# What belongs to no copy: a lock, a list of running queries, snapshots that a user made, files that are being written.
SKIPPED = re.compile(
    r"(lock|queries\.active|snapshots|lost\+found|\.backup|\.restore)|.*\.tmp(-for-creation|-for-deletion)?"
)


class Place(NamedTuple):
    """A directory on the host; of what is in it, the entries with these names belong to the service, or all."""

    directory: Path
    names: tuple[str, ...] | None = None

    def entries(self) -> list[Path]:
        found = sorted(self.directory.iterdir()) if self.directory.is_dir() else []
        return [
            path
            for path in found
            if not SKIPPED.fullmatch(path.name) and (self.names is None or path.name in self.names)
        ]


class Service(NamedTuple):
    """A service; without a package, it is one that this project installs by itself."""

    title: str
    unit: str
    package: str
    places: dict[str, Place]


def services(root: Path = Path("/")) -> dict[str, Service]:
    """Return the services of a host by their names; tests pass their own `root`."""
    data = root / "var/lib"
    database = ("grafana.db", "grafana.db-wal", "grafana.db-shm", "grafana.db-journal", "secret_key")
    return {
        "prometheus": Service(
            "Prometheus", "prometheus.service", "prometheus", {"data": Place(data / "prometheus/metrics2")}
        ),
        "alertmanager": Service(
            "Alertmanager",
            "prometheus-alertmanager.service",
            "prometheus-alertmanager",
            {"data": Place(data / "prometheus/alertmanager")},
        ),
        "grafana": Service(
            "Grafana",
            "grafana-server.service",
            "grafana",
            {
                "data": Place(data / "grafana", database),
                "password": Place(root / "etc/grafana", ("admin_password",)),
            },
        ),
        "model_server": Service(
            "The model server",
            "model-server.service",
            "",
            {"data": Place(data / "model-server", ("bundles", "settings", "deployments"))},
        ),
    }


def version(service: Service, root: Path = Path("/")) -> str:
    """Return the release that is installed, without the distribution's part of it; empty if there is none."""
    if not service.package:
        return deployment(root).get("release", "")
    answer = subprocess.run(  # noqa: S603
        ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", service.package],  # noqa: S607
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        check=False,
    )
    found = re.fullmatch(r"installed (?:\d+:)?(\d+(?:\.\d+)*).*", answer.stdout)
    return found.group(1) if found else ""


def deployment(root: Path = Path("/")) -> dict[str, str]:
    """Return the release and the bundle that the model server should run, by these names, or nothing."""
    file = root / "etc/model-server/deployment"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    fields = dict(line.split(": ", 1) for line in lines if ": " in line)
    return {name: fields[name] for name in ("release", "bundle") if name in fields}


def systemctl(verb: str, unit: str) -> None:
    run("systemctl", verb, unit)


def is_active(unit: str) -> bool:
    return subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode == 0  # noqa: S603, S607


def run(*command: str, stdin: str = "") -> str:
    """Return what a command prints.

    Raises:
        BackupError: it failed; the message is the first line of what it says.
    """
    answer = subprocess.run(  # noqa: S603
        command, input=stdin, capture_output=True, encoding="utf-8", check=False
    )
    if answer.returncode:
        said = answer.stderr.strip().splitlines() or [f"exit status {answer.returncode}"]
        raise BackupError(f"{command[0]}: {said[0]}")
    return answer.stdout


def files_in(directory: Path) -> Iterator[Path]:
    """Yield all that is below a directory, each directory before what is in it, in the order of the names."""
    for entry in sorted(os.scandir(str(directory)), key=lambda entry: entry.name):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from files_in(Path(entry.path))

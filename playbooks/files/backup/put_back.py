"""Puts a copy in the place of what a service has; what was there is kept until the service answers.

In each place, `.restore` says by the names in it how far a restore has come:
    new                 the copy is being unpacked; the service's data is untouched
    new, old            the data is being moved to `old`
    placing, old        the copy is being moved into place
    gone                the service has answered; the former data can be removed
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Iterable

from .services import WORK, Place, Service, run, systemctl


def prepare(service: Service) -> None:
    """Make room for the copy of a service, after what an interrupted restore left has been put in order."""
    settle(service)
    for place in service.places.values():
        (place.directory / WORK / "new").mkdir(mode=0o700, parents=True)


def settle(service: Service) -> None:
    """Put back what an interrupted restore has moved aside; what it did not touch stays."""
    if any((place.directory / WORK / "old").exists() for place in service.places.values()):
        undo(service)
    for place in service.places.values():
        remove(place.directory / WORK)


def unpack(place: Place, file: Path) -> None:
    target = place.directory / WORK / "new"
    run("tar", "--extract", "--same-owner", "--same-permissions", f"--file={file}", f"--directory={target}")


def swap(service: Service) -> None:
    """Move the copy into place; the service is stopped meanwhile, but for the model server: it has read its files."""
    if service.package:
        systemctl("stop", service.unit)
    for place in service.places.values():
        work = place.directory / WORK
        (work / "old").mkdir(mode=0o700)
        move(place.entries(), work / "old")
        (work / "new").rename(work / "placing")
        move((work / "placing").iterdir(), place.directory)
    if service.package:
        systemctl("start", service.unit)


def undo(service: Service) -> None:
    """Return to what was there before the copy."""
    if service.package:
        systemctl("stop", service.unit)
    for place in service.places.values():
        put_back(place)
    if service.package:
        systemctl("start", service.unit)


def put_back(place: Place) -> None:
    work = place.directory / WORK
    if not (work / "old").exists():
        return
    if (work / "placing").exists():
        # What is there now came from the copy, or was written since.
        (work / "discarded").mkdir(mode=0o700, exist_ok=True)
        for entry in place.entries():
            remove(work / "discarded" / entry.name)  # of an interrupted return
            entry.rename(work / "discarded" / entry.name)
        (work / "placing").rename(work / "new")
    for entry in list((work / "old").iterdir()):
        remove(place.directory / entry.name)  # written by a service that the machine has started between the two
        entry.rename(place.directory / entry.name)
    (work / "old").rmdir()


def keep(service: Service) -> None:
    """Remove what was there before the copy."""
    for place in service.places.values():
        work = place.directory / WORK
        (work / "old").rename(work / "gone")
    for place in service.places.values():
        remove(place.directory / WORK)


def move(paths: Iterable[Path], directory: Path) -> None:
    for path in list(paths):
        path.rename(directory / path.name)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(str(path))
    elif path.exists() or path.is_symlink():
        path.unlink()

"""Takes the copy of a host's services: quickly and at rest in place first, then in parts that can be carried away."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from . import BackupError
from .services import COPY, SKIPPED, Place, Service, files_in, is_active, run, services, systemctl, version

PART = 512 * 2**20  # bytes: so much space is needed beside the data; a single larger file is a part by itself
ATTEMPTS = 20
# Grafana's own default, which encrypts what is in a database that has no key of its own: defaults.ini of every release.
DEFAULT_KEY = "SW2YcwTIb9zpOOhoPsMm"


class Part(NamedTuple):
    """Some files of a place, by their paths in the copy."""

    service: str
    place: str
    paths: list[str]
    size: int


def survey(root: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the services that are deployed, with their release and the bytes of their data; and the others."""
    there, missing = {}, []
    for name, service in services(root).items():
        release = version(service, root)
        if release:
            there[name] = {
                "title": service.title,
                "version": release,
                "bytes": sum(size_of(path) for place in service.places.values() for path in all_of(place)),
            }
        else:
            missing.append(service.title)
    return there, missing


def all_of(place: Place) -> Iterator[Path]:
    for entry in place.entries():
        yield entry
        if entry.is_dir() and not entry.is_symlink():
            yield from files_in(entry)


def size_of(path: Path) -> int:
    try:
        status = path.lstat()
    except FileNotFoundError:  # removed meanwhile, by a compaction for example
        return 0
    return status.st_blocks * 512


def free(directory: Path) -> int:
    """Return the bytes that are free where a directory is, or will be."""
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(str(directory)).free


def stage(root: Path) -> list[Part]:
    """Make the copies in place, and return the parts in which they can be carried away.

    Prometheus, Grafana and the model server go on; Alertmanager is restarted.
    """
    drop(root)
    for name, service in services(root).items():
        if version(service, root):
            for place in service.places.values():
                (place.directory / COPY).mkdir(mode=0o700, parents=True)
            {"alertmanager": copy_alertmanager, "grafana": copy_grafana}.get(name, copy_by_links)(service)
    return parts(root)


def copy_by_links(service: Service) -> None:
    """Link all files; of those that grow at their end, copy the last.

    Blocks, segments and bundles never change once they are complete. When no file came or went between two
    looks, the links are those of one moment. What is half written at the end of a write-ahead log is dropped
    at the next start, as after a power cut.
    """
    (place,) = service.places.values()
    copy = place.directory / COPY
    for _ in range(ATTEMPTS):
        shutil.rmtree(str(copy))
        copy.mkdir(mode=0o700)
        before = names_in(place)
        try:
            for entry in place.entries():
                link(entry, copy / entry.name)
        except FileNotFoundError:
            continue
        if names_in(place) == before:
            return
    raise BackupError(
        f"Files of {service.title} in {place.directory} came and went during {ATTEMPTS} attempts; try again."
    )


def names_in(place: Place) -> set[str]:
    try:
        paths = [path.relative_to(place.directory) for path in all_of(place)]
    except FileNotFoundError:
        return set()
    return {str(path) for path in paths if not any(SKIPPED.fullmatch(part) for part in path.parts)}


def link(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        target.mkdir(mode=0o700)
        entries = [path for path in sorted(source.iterdir()) if not SKIPPED.fullmatch(path.name)]
        growing = (
            [path for path in entries if path.is_file()][-1:] if source.name in ("wal", "wbl", "chunks_head") else []
        )
        for entry in entries:
            if entry in growing:
                duplicate(entry, target / entry.name)
            else:
                link(entry, target / entry.name)
        like(source, target)
    elif source.name == "deployments":  # replaced as a whole, but small
        duplicate(source, target)
    else:
        os.link(str(source), str(target), follow_symlinks=False)


def duplicate(source: Path, target: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(str(source))
    run("cp", "--preserve=all", "--sparse=always", "--recursive", "--", str(source), str(target))


def like(source: Path, target: Path) -> None:
    status = source.stat()
    os.chown(str(target), status.st_uid, status.st_gid)
    target.chmod(status.st_mode & 0o7777)


def copy_alertmanager(service: Service) -> None:
    """Copy after a restart: Alertmanager writes its silences and notifications at its end, else every 15 minutes."""
    if is_active(service.unit):
        systemctl("restart", service.unit)
    for place in service.places.values():
        for entry in place.entries():
            duplicate(entry, place.directory / COPY / entry.name)


def copy_grafana(service: Service) -> None:
    """Copy the database by SQLite itself, which keeps it whole while Grafana writes; and its key and password."""
    for place in service.places.values():
        copy = place.directory / COPY
        for entry in place.entries():
            if entry.name == "grafana.db":
                copy_database(entry, copy / entry.name)
            elif not entry.name.startswith("grafana.db"):
                duplicate(entry, copy / entry.name)
    database = service.places["data"].directory / COPY / "grafana.db"
    key = database.with_name("secret_key")
    if database.exists() and not key.exists():
        key.write_text(DEFAULT_KEY)
        like(database, key)


def copy_database(source: Path, target: Path) -> None:
    try:
        reading = sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=60)
        with closing(reading), closing(sqlite3.connect(str(target))) as copy:
            reading.backup(copy)
    except sqlite3.Error as error:
        raise BackupError(f"{source} cannot be copied: {error}.") from error
    like(source, target)


def parts(root: Path) -> list[Part]:
    """Return the parts of the copies that have been made."""
    found = []
    for name, service in services(root).items():
        for key, place in service.places.items():
            copy = place.directory / COPY
            paths: list[str] = []
            size = 0
            for path in files_in(copy) if copy.is_dir() else ():
                bytes_ = size_of(path)
                if paths and size + bytes_ > PART:
                    found.append(Part(name, key, paths, size))
                    paths, size = [], 0
                paths.append(str(path.relative_to(copy)))
                size += bytes_
            if paths:
                found.append(Part(name, key, paths, size))
    return found


def pack(root: Path, number: int, file: Path) -> dict[str, Any]:
    """Write a part as an archive, for the owner of its directory alone, and return its size and checksum."""
    part = parts(root)[number]
    copy = services(root)[part.service].places[part.place].directory / COPY
    if file.exists():
        file.unlink()
    file.touch(mode=0o600)
    names = "".join(f"{path}\0" for path in part.paths)
    options = ("--sparse", "--no-recursion", "--null", "--verbatim-files-from", "--files-from=-")
    run("tar", "--create", f"--file={file}", f"--directory={copy}", *options, stdin=names)
    owner = file.parent.stat()
    os.chown(str(file), owner.st_uid, owner.st_gid)
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        for block in iter(lambda: content.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def drop(root: Path) -> None:
    """Remove the copies in place."""
    for service in services(root).values():
        for place in service.places.values():
            if (place.directory / COPY).exists():
                shutil.rmtree(str(place.directory / COPY))

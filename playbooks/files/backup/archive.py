"""The copy of a host on the controller: a directory with archives and manifest.json, which says what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import BackupError
from .take import sha256

FORMAT = 1


def check(directory: Path) -> dict[str, Any]:
    """Return the manifest of a copy that is whole.

    Raises:
        BackupError: something is missing or damaged, or another version has written it.
    """
    file = directory / "manifest.json"
    if not file.is_file():
        raise BackupError(
            f"{directory} has no manifest.json, so it is no backup, or its backup was interrupted; choose another."
        )
    try:
        manifest: dict[str, Any] = json.loads(file.read_bytes())
        format_, archives = manifest["format"], manifest["archives"]
        expected = {archive["file"]: (archive["bytes"], archive["sha256"]) for archive in archives}
    except (ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{file} is damaged ({type(error).__name__}: {error}); choose another backup.") from error
    if format_ != FORMAT:
        raise BackupError(
            f"{directory} is a backup of format {format_}, and this checkout reads format {FORMAT}; "
            "use the checkout that made it."
        )
    missing = [name for name in expected if not (directory / name).is_file()]
    if missing:
        raise BackupError(f"{directory} lacks {', '.join(missing)}; choose another backup.")
    damaged = [
        name
        for name, (size, digest) in expected.items()
        if (directory / name).stat().st_size != size or sha256(directory / name) != digest
    ]
    if damaged:
        raise BackupError(
            f"{directory}: {', '.join(damaged)} is not as it was written (SHA-256); choose another backup."
        )
    return manifest


def problems(manifest: dict[str, Any], there: dict[str, Any], room: dict[str, int]) -> list[str]:
    """Return why a copy cannot be put back where these services are, with so many bytes free for them; in sentences."""
    found = []
    for name, copied in manifest["services"].items():
        if name not in there:
            continue
        here = there[name]
        if name != "model_server" and numbers(here["version"]) < numbers(copied["version"]):
            found.append(
                f"The backup is from {here['title']} {copied['version']}, which {here['version']} on this host may not "
                f"read; install {copied['version']} or later first."
            )
        if room[name] < copied["bytes"]:
            found.append(
                f"{here['title']} needs {megabytes(copied['bytes'])} for the backup, beside what it has, and there are "
                f"{megabytes(room[name])} free on this host; free some space."
            )
    return found


def numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]


def megabytes(size: int) -> str:
    return f"{size / 10**6:,.0f} MB".replace(",", " ")

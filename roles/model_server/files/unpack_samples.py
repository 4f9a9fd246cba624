#!/usr/bin/env python3
"""Unpack the samples of a host, which may have been taken over, into a folder of the controller.

usage: unpack_samples.py ARCHIVE FOLDER MAX_BYTES

Exit status 1 and a sentence on stderr, and nothing is unpacked, if ARCHIVE has anything but the regular files that
`model-server samples` packs, or more than MAX_BYTES beside its sheet and its table.
"""

import os
import re
import shutil
import sys
import tarfile
from pathlib import Path
from typing import List

NAMES = re.compile(
    r"(rejected|uncertain|outlying)/[0-9a-f-]+\.(jpg|png|webp|bin|json)|labels\.csv|contact-sheet\.png", re.ASCII
)
MARGIN = 64_000_000  # bytes: for the sheet, the table and what tar adds
MOST = 10_000  # files; a ring has 6,000 at most
TRUST = "If the host can be trusted, look at it there with `model-server samples`."


class UnpackError(Exception):
    """An archive that is not unpacked; the message says why in sentences."""


def members_of(tar: tarfile.TarFile, max_bytes: int) -> List[tarfile.TarInfo]:
    """Return the members of an archive, which has only what may be unpacked."""
    members: List[tarfile.TarInfo] = []
    names = set()
    left = max_bytes + MARGIN
    for member in tar:
        if not NAMES.fullmatch(member.name):
            raise UnpackError(f"it has {member.name!r}, which is no file of samples. {TRUST}")
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
            raise UnpackError(f"its {member.name} is no regular file. {TRUST}")
        if member.name in names:
            raise UnpackError(f"it has {member.name} twice. {TRUST}")
        left -= member.size
        if left < 0 or len(members) == MOST:
            raise UnpackError(too_large(max_bytes))
        names.add(member.name)
        members.append(member)
    return members


def too_large(max_bytes: int) -> str:
    return (
        f"it is larger than model_server_samples_max_bytes, {max_bytes}, allows. "
        f"If that was higher when the host was deployed, set it to that again for this play. {TRUST}"
    )


def write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    path = folder / member.name
    path.parent.mkdir(mode=0o700, exist_ok=True)
    content = tar.extractfile(member)
    if content is None:
        raise UnpackError(f"its {member.name} is no regular file. {TRUST}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with content, open(os.open(str(path), flags, 0o600), "wb") as file:
        shutil.copyfileobj(content, file)


def unpack(archive: Path, folder: Path, max_bytes: int) -> None:
    """Unpack an archive.

    Raises:
        UnpackError: it has something else, or too much, or is damaged.
    """
    try:
        if archive.stat().st_size > max_bytes + MARGIN:  # its headers, too, are read into memory
            raise UnpackError(too_large(max_bytes))
        with tarfile.open(str(archive), "r:") as tar:
            for member in members_of(tar, max_bytes):
                write(tar, member, folder)
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise UnpackError(f"it is damaged: {error}. Run the play again.") from error
    except OSError as error:
        raise UnpackError(f"it cannot be unpacked: {error.strerror}: {error.filename}.") from error


if __name__ == "__main__":
    try:
        unpack(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    except UnpackError as problem:
        sys.exit(f"The archive of the host's samples is not taken: {problem}")

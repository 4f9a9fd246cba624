"""The ring of samples: images in a directory that all workers of a host share; the oldest go where there are too many.

    outlying/01764352000123456789-5f0c2a91.jpg    the image, without its metadata
    outlying/01764352000123456789-5f0c2a91.json   what was answered; it comes last: without it, the sample is not whole

Whoever writes holds a lock, which the kernel releases when its process dies. So what is not whole while one holds the
lock is what a killed worker has left, and is removed. Readers need no lock.
"""

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Tuple

from model_server.metrics.samples import SampleReason

BLOCK = 4096  # bytes: what a file takes on a disk is a multiple of it
MOST = 1000  # samples for each reason: nobody looks at more, and each write lists them
FEWEST = 10  # images that a share has room for
LARGEST = 5_000_000  # bytes of an image: what one reason of one worker may write in a second
LOCK = ".lock"
IMAGE = "image"  # the field of the JSON that names the image's file


class Sample(NamedTuple):
    """A sample that was kept: the file of its image, and what was answered."""

    reason: SampleReason
    image: Path
    answer: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name that its files have without their suffix; the later it was kept, the higher."""
        return self.image.name.partition(".")[0]


class Ring:
    """Keeps samples in at most so many bytes on the disk, a third of them for each reason.

    So a flood of one reason does not throw the others out.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Use a directory, which is made when the first sample comes."""
        self._directory = directory
        self._share = max_bytes // len(SampleReason)
        self.largest = min(self._share // FEWEST, LARGEST)  # bytes of an image

    def keep(self, reason: SampleReason, image: bytes, suffix: str, answer: Mapping[str, Any]) -> bool:
        """Keep an image, and remove the oldest of its reason as needed; return whether it is small enough.

        Args:
            reason: why.
            image: the file.
            suffix: of the file's name, like `.jpg`.
            answer: what JSON says beside it.

        Raises:
            OSError: it cannot be written; nothing of it is left.
        """
        name = f"{time.time_ns():020}-{os.urandom(4).hex()}"
        described = json.dumps({IMAGE: f"{name}{suffix}", **answer}, indent=2).encode()
        needed = _on_disk(len(image)) + _on_disk(len(described))
        if len(image) > self.largest or needed > self._share:
            return False
        folder = self._directory / reason.value
        for directory in (self._directory, folder):
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700)
        with self._locked():
            self._make_room(folder, needed)
            partial = folder / f"{name}.partial"
            try:
                _write(folder / f"{name}{suffix}", image)
                _write(partial, described)
                partial.rename(folder / f"{name}.json")
            except OSError:
                _remove([partial, folder / f"{name}{suffix}"])
                raise
        return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(str(self._directory / LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _make_room(self, folder: Path, needed: int) -> None:
        """Remove what is not whole, and the oldest samples until there is room for one of so many bytes."""
        samples: Dict[str, List[Tuple[str, int]]] = {}
        with os.scandir(str(folder)) as found:
            for entry in found:
                size = _on_disk(entry.stat(follow_symlinks=False).st_size)
                samples.setdefault(entry.name.partition(".")[0], []).append((entry.name, size))
        sizes = {}
        for name, files in samples.items():
            if f"{name}.json" in (file for file, _ in files):
                sizes[name] = sum(size for _, size in files)
            else:
                _remove(folder / file for file, _ in files)
        used, left = sum(sizes.values()), len(sizes)
        for name in sorted(sizes):
            if used + needed <= self._share and left < MOST:
                return
            # The JSON first: an image alone is not whole.
            _remove(folder / file for file in sorted((file for file, _ in samples[name]), key=_is_image))
            used, left = used - sizes[name], left - 1


def read_ring(directory: Path) -> List[Sample]:
    """Return the samples, for each reason the oldest first; those that cannot be read are left out.

    Raises:
        OSError: the directory cannot be read.
    """
    samples = []
    for reason in SampleReason:
        folder = directory / reason.value
        names = sorted(os.listdir(str(folder))) if folder.is_dir() else []
        for name in names:
            if name.endswith(".json"):
                # It may have gone meanwhile; after a power cut it may be empty.
                with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                    answer = json.loads((folder / name).read_text(encoding="utf-8"))
                    samples.append(Sample(reason, folder / answer[IMAGE], answer))
    return samples


def _on_disk(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _is_image(name: str) -> bool:
    return not name.endswith(".json")


def _write(path: Path, content: bytes) -> None:
    with open(os.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(content)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()

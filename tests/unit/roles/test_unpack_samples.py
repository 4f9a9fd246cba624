"""The archive of samples comes from a host that may have been taken over."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

PROGRAM = Path(__file__).parents[3] / "roles/model_server/files/unpack_samples.py"
IMAGE = "outlying/01764352000123456789-5f0c2a91.jpg"
MAX_BYTES = 1_000_000


def member(name: str = IMAGE, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def archive(directory: Path, *members: tarfile.TarInfo, kind: str = "w") -> Path:
    path = directory / "samples.tar"
    with tarfile.open(str(path), kind) as tar:  # type: ignore[call-overload]
        for info in members:
            tar.addfile(info, io.BytesIO(bytes(info.size)) if info.isreg() else None)
    return path


def unpack(directory: Path, path: Path) -> str:
    """Return what the program says of an archive, and make sure that it left nothing if it says something."""
    place = directory / "place"
    place.mkdir()
    arguments = [sys.executable, str(PROGRAM), str(path), str(place), str(MAX_BYTES)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert run.stdout == ""
    assert (run.returncode == 0) == (run.stderr == "")
    assert run.returncode == 0 or list(place.iterdir()) == []
    return run.stderr


def test_files_of_samples_are_for_their_owner_alone(tmp_path: Path) -> None:
    names = [IMAGE, IMAGE.replace("jpg", "json"), "rejected/0-a.bin", "uncertain/1-b.webp", "uncertain/2-c.png"]
    names += ["labels.csv", "contact-sheet.png"]
    path = archive(tmp_path, *[member(name, size=3, mode=0o6777) for name in names])
    assert unpack(tmp_path, path) == ""
    found = {str(file.relative_to(tmp_path / "place")): file for file in (tmp_path / "place").rglob("*.*")}
    assert sorted(found) == sorted(names)
    assert {file.stat().st_mode & 0o7777 for file in found.values()} == {0o600}
    assert {file.read_bytes() for file in found.values()} == {bytes(3)}
    assert (tmp_path / "place" / "outlying").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "name",
    ["../x.jpg", "/etc/passwd", "outlying/../../x.jpg", "outlying/x.jpg", "outlying/a.sh", "a.jpg", f"{IMAGE}\n"],
)
def test_another_name_is_refused(tmp_path: Path, name: str) -> None:
    said = unpack(tmp_path, archive(tmp_path, member("labels.csv"), member(name)))
    assert said.startswith(f"The archive of the host's samples is not taken: it has {name!r}, which is no file of samp")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    said = unpack(tmp_path, archive(tmp_path, member(type=kind, linkname="/etc/passwd")))
    assert f"its {IMAGE} is no regular file." in said


def test_a_sparse_file_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, member(pax_headers={"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 40)}))
    assert f"its {IMAGE} is no regular file." in unpack(tmp_path, path)


def test_a_file_that_comes_twice_is_refused(tmp_path: Path) -> None:
    assert f"it has {IMAGE} twice." in unpack(tmp_path, archive(tmp_path, member(), member()))


def large(directory: Path) -> Path:
    path = archive(directory, member(size=1))
    with path.open("ab") as file:
        file.truncate(MAX_BYTES + 64_000_001)
    return path


def promising(directory: Path) -> Path:
    path = directory / "samples.tar"
    path.write_bytes(member(size=1 << 40).tobuf(tarfile.GNU_FORMAT))
    return path


MUCH: Dict[str, Callable[[Path], Path]] = {
    "archive": large,
    "promise": promising,
    "files": lambda directory: archive(directory, *[member(f"outlying/{number}.bin") for number in range(10_001)]),
}


@pytest.mark.parametrize("kind", MUCH)
def test_more_than_a_host_may_have_is_refused(tmp_path: Path, kind: str) -> None:
    said = unpack(tmp_path, MUCH[kind](tmp_path))
    assert "it is larger than model_server_samples_max_bytes, 1000000, allows. If that was higher when the" in said


@pytest.mark.parametrize("data", [b"", b"x" * 512, member(size=600_000).tobuf() + b"x"], ids=["empty", "none", "short"])
def test_a_damaged_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "samples.tar").write_bytes(data)
    assert "it is damaged: " in unpack(tmp_path, tmp_path / "samples.tar")


def test_a_packed_archive_is_refused(tmp_path: Path) -> None:
    assert "it is damaged: " in unpack(tmp_path, archive(tmp_path, member(size=9), kind="w:gz"))

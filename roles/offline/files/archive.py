"""Commands of playbooks/gather.yml on the controller, for what neither apt nor pip does.

lock LOCK PYTHON MACHINE   prints the requirements of LOCK that hold for an interpreter ("3.8") on Linux and a machine
                           ("x86_64"): pip itself judges them by the interpreter that runs it
index DIRECTORY            writes Packages, apt's index of the Debian packages, and SHA256SUMS of all files
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Iterator

from packaging.markers import Marker

MANIFEST = "SHA256SUMS"


def requirements(lock: str, python: str, machine: str) -> Iterator[str]:
    """Yield the requirements of a lock that hold, without their markers and with their hashes."""
    environment = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    for line in lock.replace("\\\n", " ").splitlines():
        requirement, *hashes = line.partition("#")[0].split(" --hash=")
        name, _, marker = requirement.partition(";")
        if name.strip() and (not marker.strip() or Marker(marker).evaluate(environment)):
            yield " ".join([name.strip(), *(f"--hash={value.strip()}" for value in hashes)])


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def stanza(control: str, name: str, size: int, digest: str) -> str:
    """Return a package's entry in the index.

    apt writes a colon as %3a in a file's name, and reads it as a colon again: on hosts it is _ instead.
    """
    return f"{control.strip()}\nFilename: ./packages/{name.replace('%3a', '_')}\nSize: {size}\nSHA256: {digest}\n\n"


def index(directory: Path) -> None:
    """Write the index of a directory's Debian packages, and its manifest, each at once or not at all."""
    packages = directory / "packages"
    listed = ""
    # Grafana's role brings its own package to the host: apt only has to know what that needs.
    for deb in sorted([*packages.glob("*.deb"), *directory.glob("grafana/*.deb")]):
        control = subprocess.run(["dpkg-deb", "--field", str(deb)], check=True, capture_output=True, text=True).stdout  # noqa: S603, S607
        listed += stanza(control, deb.name, deb.stat().st_size, sha256(deb))
    write(directory / "Packages", listed)
    files = sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and path.name not in {MANIFEST, "lock"} and path.parent.name != "partial"
    )
    write(
        directory / MANIFEST, "".join(f"{sha256(path)}  {path.relative_to(directory).as_posix()}\n" for path in files)
    )


def write(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)


if __name__ == "__main__":
    if sys.argv[1] == "lock":
        sys.stdout.writelines(f"{line}\n" for line in requirements(Path(sys.argv[2]).read_text(), *sys.argv[3:5]))
    else:
        index(Path(sys.argv[2]))

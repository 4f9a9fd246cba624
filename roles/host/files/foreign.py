#!/usr/bin/python3
"""Finds what a service of this host has that its role did not set up; prints it as JSON.

The roles of Prometheus, Alertmanager, node exporter and Grafana run it with `python3 - SERVICE`. SERVICE is JSON:
`role` and `name`, as users are told; `take_over`, whether the user wants it replaced; `package` and `unit`; the
`address` and `port` that it is to listen on, and `further_ports`, each with an `address`, a `port` and the `variable`
that has it; `programs`, the names of its process; `files`, each with lines of which every release of the role writes
one and nobody else any; `samples`, what the package makes a file of that dpkg does not know.
What the package left as it was is not foreign: nobody loses anything with it.
"""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional

ANY_ADDRESS = {"*", "0.0.0.0", "[::]"}  # noqa: S104 - compared, not bound

Service = Mapping[str, Any]


class Listener(NamedTuple):
    """A process that listens on the port of the service; `unit` is empty when systemd did not start it."""

    program: str
    pid: str
    unit: str


def changed_files(service: Service, root: Path) -> List[str]:
    """Return the configuration files that neither the role nor the package has written."""
    package: Dict[str, str] = {}
    for line in run("dpkg-query", "--show", "--showformat=${Conffiles}", service["package"]).splitlines():
        path, digest = line.split()[:2]
        package[path] = digest
    found = []
    for path, lines in service["files"].items():
        content = read(root, path)
        if content is None:
            continue
        sample = read(root, service.get("samples", {}).get(path, ""))
        known = any(line.encode() in content for line in lines) or content == sample
        if not known and hashlib.md5(content).hexdigest() != package.get(path):  # noqa: S324
            found.append(path)
    return found


def read(root: Path, path: str) -> Optional[bytes]:
    try:
        return (root / path.lstrip("/")).read_bytes()
    except (FileNotFoundError, IsADirectoryError):
        return None


def unit_file(service: Service, root: Path) -> str:
    """Return the unit file in place of the package's. Roles of this project write drop-ins alone."""
    path = f"/etc/systemd/system/{service['unit']}"
    file = root / path.lstrip("/")
    # A package that is removed masks its unit and notes that here; it unmasks it when it is installed again.
    if file.is_symlink() and (root / "var/lib/systemd/deb-systemd-helper-masked" / service["unit"]).exists():
        return ""
    return path if file.exists() or file.is_symlink() else ""


def listener(service: Service, root: Path) -> Optional[Listener]:
    """Return the process that has the port, unless it is the service itself."""
    main = main_process(service["unit"])
    answer = run("ss", "--listening", "--tcp", "--numeric", "--processes", "--no-header", f"sport = :{service['port']}")
    for line in answer.splitlines():
        address = line.split()[3].rpartition(":")[0]
        processes = re.findall(r'\("([^"]+)",pid=([0-9]+)', line)
        if not ({address, service["address"]} & ANY_ADDRESS or address == service["address"]):
            continue
        # In a container, ss may not see whose socket it is: it is the service's if that runs.
        if main in {pid for _, pid in processes} or (not processes and main != "0"):
            continue
        program, pid = processes[0] if processes else ("", "")
        return Listener(program, pid, unit_of(pid, root) if program in service["programs"] else "")
    return None


def unit_of(pid: str, root: Path) -> str:
    """Return the unit whose main process this is, or nothing: processes of containers must not stop their daemon."""
    try:
        groups = (root / "proc" / pid / "cgroup").read_text()
    except OSError:
        return ""
    found = re.search(r"^(?:0:|[0-9]+:name=systemd):.*/([^/]+[.]service)$", groups, flags=re.MULTILINE)
    return found[1] if found and main_process(found[1]) == pid else ""


def main_process(unit: str) -> str:
    return run("systemctl", "show", "--property=MainPID", "--value", unit).strip() or "0"


def run(*command: str) -> str:
    """Return what a command prints; nothing when it fails or is missing, as on a host without the package."""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)  # noqa: S603
    except FileNotFoundError:
        return ""
    return "" if done.returncode else done.stdout


def problems(service: Service, foreign: List[str], found: Optional[Listener]) -> List[str]:
    """Return what the user must decide, a sentence each."""
    role, said = service["role"], []
    if foreign and not service["take_over"]:
        otherwise = f", or {role}_port to another port" if found and found.unit and len(foreign) == 1 else ""
        said.append(
            f"This host has {service['name']} already, which this role did not set up: {', '.join(foreign)}; "
            f"set {role}_take_over to true to replace it and keep backups of its files{otherwise}."
        )
    if found and not found.unit:
        said.append(taken(found, service["port"], f"{role}_port"))
    return said


def further_problems(service: Service, found: Optional[Listener], root: Path) -> List[str]:
    """Return a sentence for each further port that another process has, unless that is stopped with the first one."""
    said = []
    for further in service.get("further_ports", []):
        other = listener({**service, "address": further["address"], "port": further["port"]}, root)
        if other and not (other.unit and found and other.unit == found.unit):
            said.append(taken(other, further["port"], further["variable"]))
    return said


def taken(found: Listener, port: str, variable: str) -> str:
    process = f"{found.program} (process {found.pid})" if found.pid else "another process"
    return f"Port {port} is taken by {process}; stop it or set {variable} to another port."


def report(service: Service, root: Path) -> Dict[str, Any]:
    """Return the unit to stop, the unit file to move away, the files to replace, and what only the user can decide."""
    files, own_unit, found = changed_files(service, root), unit_file(service, root), listener(service, root)
    foreign = [own_unit] if own_unit else []
    if found and found.unit:
        foreign.insert(0, f"{found.program} (process {found.pid}) of {found.unit} on port {service['port']}")
    return {
        "role": service["role"],
        "files": files,
        "unit_file": own_unit,
        "stop": found.unit if found else "",
        "problems": problems(service, foreign + files, found) + further_problems(service, found, root),
    }


if __name__ == "__main__":
    print(json.dumps(report(json.loads(sys.argv[1]), Path("/"))))  # noqa: T201 - the role reads it

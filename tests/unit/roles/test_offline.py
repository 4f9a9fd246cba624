"""The archive of playbooks/gather.yml: which requirements hold for a target, apt's index, what its preflight says."""

import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, List, Set, Tuple

import pytest
import yaml

from tests.unit.plays import run_play

REPOSITORY = Path(__file__).parents[3]
LOCKS = sorted(REPOSITORY.glob("roles/*/files/requirements*.txt"))
LOCK = """\
# made by a tool
both==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
    # via something
old==1.0 ; python_full_version < '3.9' \\
    --hash=sha256:cc
new==2.0 ; python_full_version >= '3.9' and python_full_version < '3.12' \\
    --hash=sha256:dd
windows==1.0 ; sys_platform == 'win32' \\
    --hash=sha256:ee
arm==1.0 ; platform_machine == 'aarch64' \\
    --hash=sha256:ff
"""


@pytest.fixture(scope="module")
def archive() -> ModuleType:
    pytest.importorskip("packaging")
    spec = importlib.util.spec_from_file_location("archive", REPOSITORY / "roles/offline/files/archive.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("python", "machine", "held"),
    [
        ("3.8", "x86_64", ["both==1.0 --hash=sha256:aa --hash=sha256:bb", "old==1.0 --hash=sha256:cc"]),
        ("3.11", "x86_64", ["both==1.0 --hash=sha256:aa --hash=sha256:bb", "new==2.0 --hash=sha256:dd"]),
        ("3.12", "aarch64", ["both==1.0 --hash=sha256:aa --hash=sha256:bb", "arm==1.0 --hash=sha256:ff"]),
    ],
)
def test_requirements_are_those_of_the_target(archive: ModuleType, python: str, machine: str, held: List[str]) -> None:
    assert list(archive.requirements(LOCK, python, machine)) == held


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(REPOSITORY)))
@pytest.mark.parametrize("python", ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"])
def test_each_requirement_of_a_lock_is_there_once_with_hashes(archive: ModuleType, lock: Path, python: str) -> None:
    held = list(archive.requirements(lock.read_text(), python, "x86_64"))

    names = [line.partition("==")[0] for line in held]
    assert len(names) > 0
    assert sorted(set(names)) == sorted(names)
    assert [line for line in held if "--hash=sha256:" not in line or ";" in line] == []


def test_index_tells_apt_what_each_package_is(archive: ModuleType) -> None:
    entry = archive.stanza("Package: haproxy\nVersion: 1:2.0\n", "haproxy_1%3a2.0_amd64.deb", 7, "ab")

    assert entry == (
        "Package: haproxy\nVersion: 1:2.0\nFilename: ./packages/haproxy_1_2.0_amd64.deb\nSize: 7\nSHA256: ab\n\n"
    )


def test_manifest_has_every_file_and_not_itself(archive: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "packages" / "partial").mkdir(parents=True)
    (tmp_path / "packages" / "lock").write_text("")
    (tmp_path / "packages" / "partial" / "half.deb").write_text("half")
    (tmp_path / "wheels-3.8" / "locust").mkdir(parents=True)
    (tmp_path / "wheels-3.8" / "locust" / "a.whl").write_text("a")

    archive.index(tmp_path)
    archive.index(tmp_path)

    assert (tmp_path / "SHA256SUMS").read_text().splitlines() == [
        f"{hashlib.sha256(b'').hexdigest()}  Packages",
        f"{hashlib.sha256(b'a').hexdigest()}  wheels-3.8/locust/a.whl",
    ]


def flat(tasks: Any) -> Any:
    for task in tasks:
        yield task
        for part in ("block", "rescue", "always"):
            yield from flat(task.get(part, []))


def installed(task: Dict[str, Any]) -> Set[str]:
    """Return the names of packages that a task installs, whatever its conditions."""
    apt = task.get("ansible.builtin.apt", {"state": "absent"})
    names = task.get("vars", {}).get("__host_packages", [] if apt.get("state") == "absent" else apt.get("name", []))
    if isinstance(names, list):
        return set(names)
    if not names.startswith("{{"):
        return {names.partition("=")[0]}
    lists = re.findall(r"\[([^]]*)\]", names)
    return set(re.findall(r"'([^']+)'", " ".join(lists)))


def test_archive_has_the_packages_that_the_roles_install() -> None:
    gathered = yaml.safe_load((REPOSITORY / "roles/offline/vars/main.yml").read_text())["__offline_packages"]
    roles: Dict[str, Set[str]] = {"offline": {"python3-apt"}}
    for path in REPOSITORY.glob("roles/*/tasks/*.yml"):
        for task in flat(yaml.safe_load(path.read_text())):
            if path.parts[-3] != "host" and installed(task):
                roles.setdefault(path.parts[-3], set()).update(installed(task))

    # These are gathered by their roles, as a variable asks.
    conditional = {"grafana", "python3-torch", "python3-torchvision"}
    assert {role: sorted(names - conditional) for role, names in roles.items()} == gathered


FOCAL = {"distribution": "Ubuntu", "distribution_release": "focal", "architecture": "x86_64"}
INTERPRETER = "{}.{}".format(*sys.version_info[:2])
# A host's variables → what stops it; the archive has PyTorch and Locust for focal, and nothing whole for jammy.
JUDGED: Dict[str, Tuple[Dict[str, Any], str]] = {
    "other_distribution": (
        {"offline_roles": ["locust"], "facts": {**FOCAL, "distribution_release": "noble"}},
        "has nothing for noble-amd64, but for focal-amd64, jammy-amd64; run playbooks/gather.yml with"
        " -e gather_release=noble -e gather_architecture=amd64.",
    ),
    "other_machine": (
        {"offline_roles": ["locust"], "facts": {**FOCAL, "architecture": "aarch64"}},
        "-e gather_release=focal -e gather_architecture=arm64.",
    ),
    "damaged": (
        {"offline_roles": ["firewall"], "facts": {**FOCAL, "distribution_release": "jammy"}},
        "is not as it was gathered, changed.deb, lost.deb of jammy-amd64 differ or lack;",
    ),
    "other_interpreter": (
        {"offline_roles": ["locust"], "locust_python": "{{ other_python }}"},
        "has for focal-amd64 no wheels of locust for Python 3.99; gather with -e gather_python=3.99 as well.",
    ),
    "no_grafana": ({"offline_roles": ["grafana"]}, "has no package of Grafana for focal-amd64; gather again"),
    "no_bundle": (
        {"offline_roles": ["model_server"], "model_server_bundle": "/fruits"},
        "has no bundle for focal-amd64; gather again with model_server_bundle as it is now.",
    ),
    "no_weights": (
        {"offline_roles": ["model_server"], "model_server_weights_url": "https://example.org/w.pt"},
        "has no weights for focal-amd64; gather again with model_server_weights_url as it is now.",
    ),
}
FIT: Dict[str, Dict[str, Any]] = {
    "server": {"offline_roles": ["model_server", "firewall"]},
    "load": {"offline_roles": ["locust"]},
}


def write_archive(directory: Path) -> None:
    files = {
        f"focal-amd64/wheels-{INTERPRETER}/model_server/torch-2.4.1-cp38.whl": b"torch",
        f"focal-amd64/wheels-{INTERPRETER}/locust/locust.whl": b"locust",
        "jammy-amd64/changed.deb": b"changed",
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    for target, digest in (("focal-amd64", ""), ("jammy-amd64", "0" * 64)):
        sums = "".join(
            f"{digest or hashlib.sha256(content).hexdigest()}  {name.partition('/')[2]}\n"
            for name, content in files.items()
            if name.startswith(target)
        )
        (directory / target / "SHA256SUMS").write_text(
            sums + ("" if target == "focal-amd64" else f"{digest}  lost.deb\n")
        )


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """Run the role's preflight over a local host for each set of variables; host → the sentence, or what it found."""
    pytest.importorskip("ansible")
    directory = tmp_path_factory.mktemp("offline")
    write_archive(directory / "archive")
    other = directory / "python"
    other.write_text("#!/bin/sh\necho 3.99\n")
    other.chmod(0o755)
    hosts = {**{name: variables for name, (variables, _) in JUDGED.items()}, **FIT}
    shared = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "facts": FOCAL,
        "locust_python": sys.executable,
        "model_server_python": sys.executable,
        "offline_archive": "archive",
        "other_python": str(other),
    }
    (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts, "vars": shared}}))
    facts = {name: f"{{{{ facts.{name} }}}}" for name in FOCAL}
    found = "{{ {'environment': __offline_environment, 'found': __offline_found} | to_json }}"
    tasks = [
        {"ansible.builtin.set_fact": {**facts, "cacheable": True}},
        {"ansible.builtin.import_role": {"name": "offline", "tasks_from": "preflight"}},
        {"ansible.builtin.copy": {"content": found, "dest": str(directory / "{{ inventory_hostname }}.json")}},
    ]
    (directory / "play.yml").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    run = run_play(directory, "-i", "hosts.json", "play.yml", "--forks", "8")
    results = re.finditer(r"^fatal: \[(\w+)\]: FAILED! => ", run.stdout, flags=re.MULTILINE)
    stopped = {found[1]: json.JSONDecoder().raw_decode(run.stdout[found.end() :])[0]["msg"] for found in results}
    fit = {path.stem: json.loads(path.read_text()) for path in directory.glob("*.json") if path.stem != "hosts"}
    assert set(stopped) | set(fit) == set(hosts), run.stdout
    return {**stopped, **fit}


@pytest.mark.parametrize("host", JUDGED)
def test_archive_that_does_not_fit_is_explained_in_a_sentence(said: Dict[str, Any], host: str) -> None:
    _, sentence = JUDGED[host]

    assert sentence in said[host]


def test_roles_take_what_the_archive_has(said: Dict[str, Any]) -> None:
    wheels = f"/var/cache/model-monitoring-offline/wheels-{INTERPRETER}"
    assert said["server"]["found"] == {
        "model_server_torch_find_links": f"{wheels}/model_server",
        "model_server_torch_hashes": [hashlib.sha256(b"torch").hexdigest()],
    }
    assert said["load"] == {
        "found": {},
        "environment": {
            "APT_CONFIG": "/var/cache/model-monitoring-offline/apt.conf",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": f"{wheels}/locust",
        },
    }

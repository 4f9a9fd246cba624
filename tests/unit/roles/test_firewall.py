"""The firewall of a host, with ufw and the sockets of a host that the test plays."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Dict, List, Mapping, Sequence, Tuple

import pytest

PROGRAM = Path(__file__).parents[3] / "roles" / "firewall" / "files" / "firewall.py"
WANTED = {
    "ports": {"ssh": ["22"], "predict": ["8000"], "grafana": [], "other_monitors": ["9094", "9094/udp"]},
    "from": {
        "ssh": ["any", "192.0.2.1"],
        "predict": ["10.1.2.3/8", "192.0.2.7/32", "fd00::1", "fe80::2%eth0"],
        "grafana": ["any"],
        "other_monitors": ["192.0.2.8"],
    },
    "open": ["443", "51820/udp"],
}
RULES = [
    "allow 22/tcp",
    "allow from 10.0.0.0/8 to any port 8000 proto tcp",
    "allow from 192.0.2.7 to any port 8000 proto tcp",
    "allow from fd00::1 to any port 8000 proto tcp",
    "allow from fe80::2 to any port 8000 proto tcp",
    "allow from 192.0.2.8 to any port 9094 proto tcp",
    "allow from 192.0.2.8 to any port 9094 proto udp",
    "allow 443/tcp",
    "allow 51820/udp",
]
OURS = """\
tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=1,fd=3))
tcp LISTEN 0 128 [::]:8000 [::]:* users:(("gunicorn",pid=2,fd=3),("systemd",pid=1,fd=9))
tcp LISTEN 0 128 *:443 *:*
udp UNCONN 0 0 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=3,fd=3))
udp UNCONN 0 0 192.0.2.9%eth0:68 0.0.0.0:* users:(("systemd-network",pid=4,fd=3))
udp UNCONN 0 0 0.0.0.0:40123 0.0.0.0:* users:(("avahi-daemon",pid=5,fd=3))
udp UNCONN 0 0 0.0.0.0:51820 0.0.0.0:*
tcp LISTEN 0 128 *:9094 *:* users:(("prometheus-aler",pid=6,fd=3))
udp UNCONN 0 0 *:9094 *:* users:(("prometheus-aler",pid=6,fd=4))
"""


class Host:
    """ufw, ss and systemd-run as the program sees them."""

    def __init__(self) -> None:
        self.rules: Dict[str, str] = {}
        self.active, self.policy, self.installed = False, "allow", True
        self.sockets = OURS
        self.commands: List[Tuple[str, ...]] = []

    def run(self, *command: str) -> str:
        self.commands.append(command)
        name, *rest = command
        if name == "ss":
            return self.sockets
        if name == "ufw":
            return self.ufw(rest)
        return ""

    def ufw(self, words: Sequence[str]) -> str:
        if words[:2] == ["show", "added"]:
            lines = [f"ufw {rule}" + (f" comment '{text}'" if text else "") for rule, text in self.rules.items()]
            return "\n".join(["Added user rules (see 'ufw status' for running firewall):", *(lines or ["(None)"])])
        if words[0] == "status":
            default = f"Default: {self.policy} (incoming), allow (outgoing), disabled (routed)"
            return f"Status: active\n{default}\n" if self.active else "Status: inactive\n"
        if words[0] == "allow":
            *rule, _, text = words
            self.rules[" ".join(rule)] = text
        elif words[0] == "delete":
            del self.rules[" ".join(words[1:])]
        elif words[0] == "default":
            self.policy = words[1]
        else:
            self.active = words[-1] == "enable"
        return ""


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def firewall(host: Host, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("firewall", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "run", host.run)
    monkeypatch.setattr(module, "is_installed", lambda: host.installed)
    return module


def call(firewall: ModuleType, command: str, wanted: Mapping[str, object] = WANTED, *options: str) -> None:
    firewall.main([command, json.dumps(wanted), *options])


def test_everything_is_closed_but_for_what_is_wanted(firewall: ModuleType, host: Host) -> None:
    call(firewall, "apply")
    assert list(host.rules) == RULES
    assert (host.active, host.policy) == (True, "deny")


def test_rules_are_there_and_the_undo_is_set_before_the_host_is_closed(firewall: ModuleType, host: Host) -> None:
    call(firewall, "apply")
    changes = [command for command in host.commands if command[0] != "ss" and command[1] not in {"status", "show"}]
    assert [command[0] for command in changes[-3:]] == ["systemd-run", "ufw", "ufw"]
    assert changes[-3][-2:] == ("ufw", "disable")
    assert changes[-1] == ("ufw", "--force", "enable")


def test_a_second_run_changes_nothing(firewall: ModuleType, host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    call(firewall, "apply")
    assert capsys.readouterr().out.splitlines() == [*RULES, "default deny incoming", "enable"]
    call(firewall, "apply")
    assert capsys.readouterr().out == ""


def test_a_dry_run_tells_and_changes_nothing(
    firewall: ModuleType, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.installed = False
    call(firewall, "apply", WANTED, "--dry-run")
    assert capsys.readouterr().out.splitlines()[-1] == "enable"
    assert (host.rules, host.active) == ({}, False)


def test_a_rule_that_is_not_wanted_any_more_goes_and_those_of_others_stay(firewall: ModuleType, host: Host) -> None:
    host.rules = {"allow 80/tcp": "", "limit 25/tcp": "mail", "allow 22/tcp": "by hand"}
    call(firewall, "apply")
    fewer = {**WANTED, "open": []}
    call(firewall, "apply", fewer)
    assert host.rules.keys() == {"allow 80/tcp", "limit 25/tcp", *RULES[:7]}
    assert host.rules["allow 22/tcp"] == "by hand"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('tcp LISTEN 0 9 0.0.0.0:80 0.0.0.0:* users:(("nginx",pid=7,fd=6))', "80/tcp (nginx)"),
        ('udp UNCONN 0 0 *:8000 *:* users:(("other",pid=7,fd=6))', "8000/udp (other)"),
        ("udp UNCONN 0 0 0.0.0.0:51821 0.0.0.0:*", "51821/udp (kernel)"),
        ('udp UNCONN 0 0 0.0.0.0:53 0.0.0.0:* users:(("named",pid=7,fd=6))', "53/udp (named)"),
    ],
)
def test_services_that_would_be_closed_are_named(firewall: ModuleType, host: Host, line: str, named: str) -> None:
    host.sockets += line + "\n"
    for command in ("check", "apply"):
        with pytest.raises(SystemExit, match="firewall_open_ports") as stopped:
            call(firewall, command)
        assert named in str(stopped.value)
    assert (host.rules, host.active) == ({}, False)


def test_a_host_that_is_closed_already_is_not_asked_what_listens(firewall: ModuleType, host: Host) -> None:
    call(firewall, "apply")
    host.sockets += 'tcp LISTEN 0 9 0.0.0.0:80 0.0.0.0:* users:(("nginx",pid=7,fd=6))\n'
    call(firewall, "check")


def test_an_unknown_name_is_told_before_anything_is_changed(firewall: ModuleType, host: Host) -> None:
    wanted = {**WANTED, "from": {**WANTED["from"], "ssh": ["no such host"]}}  # type: ignore[dict-item]
    with pytest.raises(SystemExit, match="'no such host' is neither a network nor an address"):
        call(firewall, "apply", wanted)
    assert host.rules == {}


def test_removal_switches_off_what_nobody_else_uses(firewall: ModuleType, host: Host) -> None:
    call(firewall, "apply")
    call(firewall, "remove", {})
    assert (host.rules, host.active) == ({}, False)


def test_removal_leaves_the_rules_of_others_on(firewall: ModuleType, host: Host) -> None:
    host.rules, host.active, host.policy = {"allow 80/tcp": ""}, True, "deny"
    call(firewall, "apply")
    call(firewall, "remove", {})
    assert (host.rules, host.active) == ({"allow 80/tcp": ""}, True)


def test_a_host_that_has_gone_loses_its_rules_for_these_ports(
    firewall: ModuleType, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    call(firewall, "apply")
    host.rules["allow from 192.0.2.7 to any port 9100 proto tcp"] = "by hand"
    before = dict(host.rules)
    capsys.readouterr()
    gone = {"from": ["192.0.2.7", "fd00::1", "no such host"], "ports": ["8000", "9100"]}

    call(firewall, "forget", gone, "--dry-run")
    assert host.rules == before
    call(firewall, "forget", gone)

    assert before.keys() - host.rules.keys() == set(RULES[2:4])
    deleted = [f"delete {rule}" for rule in RULES[2:4]]
    assert capsys.readouterr().out.splitlines() == deleted * 2
    call(firewall, "forget", {"from": ["10.0.0.0/8"], "ports": ["22"]})
    assert RULES[1] in host.rules

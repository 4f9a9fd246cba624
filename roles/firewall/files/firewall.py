#!/usr/bin/python3
"""Closes the ports of this host but those that are wanted, by ufw; prints what it changes.

The role runs it with `python3 - COMMAND WANTED`. WANTED is JSON: `ports` has the ports of each service (9093, or
9094/udp), `from` the networks, addresses or names of hosts (or `any`) that may reach it, `open` ports that everybody
may reach.
To `forget`, `from` has hosts and `ports` what they could reach.
"""

import argparse
import ipaddress
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

MARK = "model-monitoring"  # the comment of the rules that were made here
UNDO = "model-monitoring-firewall-undo"
UNDO_AFTER = 120  # seconds; the role needs some 2 for a new connection
# Clients of DHCP, NTP and multicast DNS, which ufw lets through or which get answers only.
CLIENTS = {("udp", port) for port in (68, 123, 323, 546, 5353)}
EPHEMERAL = 32768  # Linux takes the ports of UDP clients from here on
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

Wanted = Mapping[str, Any]


class FirewallError(Exception):
    """What prevents the firewall; the message is one sentence."""


class Socket(NamedTuple):
    """A socket that other hosts can reach; `program` is empty for the kernel's own."""

    protocol: str
    port: int
    program: str


def networks(given: str) -> List[str]:
    """Return what a network, an address, the name of a host or `any` stands for, as ufw writes it."""
    if given == "any":
        return [given]
    try:
        return [written(given)]
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(given, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise FirewallError(
            f"'{given}' is neither a network nor an address, and no host of this name is known."
        ) from None
    return sorted({written(str(address[0])) for *_, address in found})


def written(network: str) -> str:
    """Return a network without the bits of a host, and an address without its length and its interface."""
    parsed = ipaddress.ip_network(network.partition("%")[0], strict=False)
    return str(parsed.network_address if parsed.num_addresses == 1 else parsed)


def wanted_rules(wanted: Wanted) -> List[str]:
    """Return the rules as `ufw show added` prints them."""
    rules = []
    for service, ports in wanted["ports"].items():
        sources = wanted["from"][service]
        # The address of whoever runs the play may be another one each time.
        for network in ["any"] if "any" in sources else [network for given in sources for network in networks(given)]:
            source = "from " + network + " to any port {0} proto {1}" if network != "any" else "{0}/{1}"
            rules += ["allow " + source.format(*port_and_protocol(port)) for port in ports]
    rules += ["allow {}/{}".format(*port_and_protocol(port)) for port in wanted["open"]]
    return list(dict.fromkeys(rules))


def port_and_protocol(given: str) -> Tuple[str, str]:
    port, _, protocol = given.partition("/")
    return port, protocol or "tcp"


def added_rules() -> Dict[str, str]:
    """Return the rules of this host with their comments."""
    rules = {}
    for line in run("ufw", "show", "added").splitlines():
        found = re.fullmatch(r"ufw (.+?)(?: comment '(.*)')?", line)
        if found:
            rules[found[1]] = found[2] or ""
    return rules


def is_closed() -> bool:
    if not is_installed():
        return False
    status = run("ufw", "status", "verbose").splitlines()
    return "Status: active" in status and any(re.match(r"Default: (deny|reject) \(incoming\)", line) for line in status)


def reachable() -> List[Socket]:
    """Return what listens on this host on other addresses than the loopback ones."""
    sockets = []
    for line in run("ss", "--listening", "--tcp", "--udp", "--numeric", "--processes", "--no-header").splitlines():
        fields = line.split(None, 6)
        address, _, port = fields[4].rpartition(":")
        program = re.search(r'\(\("([^"]+)"', fields[6]) if len(fields) > 6 else None
        if not re.match(r"127\.|\[::1\]|\[::ffff:127\.|.*%lo$", address):
            sockets.append(Socket(fields[0], int(port), program[1] if program else ""))
    return sockets


def unexpected(wanted: Wanted) -> List[Socket]:
    """Return what others can reach now, and the rules would close although nothing is known of it."""
    known = set(CLIENTS)
    for given in [*wanted["open"], *(port for ports in wanted["ports"].values() for port in ports)]:
        port, protocol = port_and_protocol(given)
        known.add((protocol, int(port)))
    return [
        found
        for found in dict.fromkeys(reachable())
        if (found.protocol, found.port) not in known
        and not (found.protocol == "udp" and found.port >= EPHEMERAL and found.program)
    ]


def refuse_to_close_others(wanted: Wanted) -> None:
    """Raise FirewallError when closing the host would close something that nothing is known of."""
    strangers = unexpected(wanted)
    if strangers:
        listed = ", ".join(f"{found.port}/{found.protocol} ({found.program or 'kernel'})" for found in strangers)
        ports = ", ".join(f"{found.port}/{found.protocol}" for found in strangers)
        raise FirewallError(
            f"The firewall would close what other services listen on: {listed}. To keep them open, set "
            f"firewall_open_ports: [{ports}]; to go without a firewall, set firewall_state: absent."
        )


def apply(wanted: Wanted, dry_run: bool) -> None:
    """Bring the rules to what is wanted, then close the rest."""
    rules, closed = wanted_rules(wanted), is_closed()
    if not closed:
        refuse_to_close_others(wanted)
    added = added_rules() if is_installed() else {}
    for rule in rules:
        if rule not in added:
            change(rule, ["ufw", *shlex.split(rule), "comment", MARK], dry_run)
    # New rules come first: nobody is cut off in between.
    for rule, comment in added.items():
        if comment == MARK and rule not in rules:
            delete(rule, dry_run)
    if not closed:
        if not dry_run:  # the role stops it over a new connection
            run("systemd-run", f"--unit={UNDO}", "--collect", f"--on-active={UNDO_AFTER}", "ufw", "disable")
        change("default deny incoming", ["ufw", "default", "deny", "incoming"], dry_run)
        change("enable", ["ufw", "--force", "enable"], dry_run)


def remove(dry_run: bool) -> None:
    """Delete the rules that were made here; without others, switch the firewall off."""
    if not is_installed():
        return
    added = added_rules()
    own = [rule for rule, comment in added.items() if comment == MARK]
    if own and len(own) == len(added) and "Status: active" in run("ufw", "status").splitlines():
        change("disable", ["ufw", "disable"], dry_run)
    for rule in own:
        delete(rule, dry_run)


def forget(gone: Wanted, dry_run: bool) -> None:
    """Delete the rules by which hosts that have gone could reach some ports."""
    if not is_installed():
        return
    rules = set()
    for given in gone["from"]:
        # Nobody may know the name any more: the next `apply` deletes what it stood for.
        with suppress(FirewallError):
            rules.update(wanted_rules({"ports": {"gone": gone["ports"]}, "from": {"gone": [given]}, "open": []}))
    for rule, comment in added_rules().items():
        if comment == MARK and rule in rules:
            delete(rule, dry_run)


def delete(rule: str, dry_run: bool) -> None:
    change(f"delete {rule}", ["ufw", "delete", *shlex.split(rule)], dry_run)


def change(what: str, command: Sequence[str], dry_run: bool) -> None:
    if not dry_run:
        run(*command)
    print(what)  # noqa: T201 - the role shows it


def run(*command: str) -> str:
    try:
        answer = subprocess.run(  # noqa: S603
            command, capture_output=True, encoding="utf-8", check=False, env={"LC_ALL": "C", "PATH": PATH}
        )
    except FileNotFoundError:
        raise FirewallError(f"'{command[0]}' is missing on this host; install the package that has it.") from None
    if answer.returncode:
        raise FirewallError(f"'{' '.join(command)}' failed: {answer.stderr.strip() or answer.stdout.strip()}")
    return answer.stdout


def is_installed() -> bool:
    return shutil.which("ufw", path=PATH) is not None


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command line; exit with a sentence and status 1 if the firewall cannot be as wanted."""
    parser = argparse.ArgumentParser(prog="firewall", description=__doc__)
    parser.add_argument("command", choices=["check", "apply", "forget", "remove"])
    parser.add_argument("wanted", type=json.loads)
    parser.add_argument("--dry-run", action="store_true", help="print the changes, and make none")
    options = parser.parse_args(arguments)
    try:
        if options.command == "check":
            wanted_rules(options.wanted)  # resolves the names
            if not is_closed():
                refuse_to_close_others(options.wanted)
        elif options.command == "apply":
            apply(options.wanted, options.dry_run)
        elif options.command == "forget":
            forget(options.wanted, options.dry_run)
        else:
            remove(options.dry_run)
    except FirewallError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

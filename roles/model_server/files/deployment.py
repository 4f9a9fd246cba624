#!/usr/bin/python3
"""Rolls the model server of this host over to another deployment: a release, a bundle and settings.

The running deployment keeps serving until the new one has checked itself; if that fails, it is restored.
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence

SERVICE = "model-server.service"
SOCKET = "model-server.socket"
KEPT = 3  # releases, and bundles
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
HEADER = "# since release bundle settings\n"
SETTLING = 180  # seconds to wait for a start or a reload that an earlier run began
LINES = 20  # of the journal, if the model server logged no error message of its own


class DeploymentError(Exception):
    """A deployment failed; the message says why."""


class Deployment(NamedTuple):
    """A release, a bundle and settings, by name: two directories and a file."""

    release: str
    bundle: str
    settings: str

    def __str__(self) -> str:
        return f"release {self.release} with bundle {self.bundle}"


class Entry(NamedTuple):
    """A line of the history; `since` is in UTC."""

    since: str
    deployment: Deployment


class State(NamedTuple):
    """What the service starts from: the targets of two links and the contents of files; None: it does not exist."""

    links: Mapping[Path, Optional[str]]
    files: Mapping[Path, Optional[bytes]]


class Host:
    """The files of the model server, and its state in systemd; tests pass their own `root`."""

    def __init__(self, root: Path = Path("/")) -> None:
        home, data = root / "opt/model-server", root / "var/lib/model-server"
        etc, units = root / "etc/model-server", root / "etc/systemd/system"
        self.releases, self.release = home / "releases", home / "current"
        self.bundles, self.bundle = data / "bundles", data / "current"
        self.kept_settings, self.history = data / "settings", data / "deployments"
        self.shadow = data / "shadow"  # a link to the bundle that sees copies of requests
        self.next = etc / "next"  # what the last play asked for
        self.deployment, self.settings = etc / "deployment", etc / "model-server.env"
        self.service, self.socket = units / SERVICE, units / SOCKET
        self.running = root / "run/model-server-deployment"  # copied from `deployment` by the service
        self.drained = root / "run/model-server/drained"  # the service looks for it; its stop removes it
        self.data = data

    def state(self) -> State:
        links = {link: os.readlink(str(link)) if link.is_symlink() else None for link in (self.bundle, self.release)}
        files = (self.settings, self.service, self.socket, self.deployment)
        return State(links, {file: file.read_bytes() if file.exists() else None for file in files})

    def state_of(self, deployment: Deployment, files: Mapping[Path, Optional[bytes]]) -> State:
        links = {self.bundle: self.bundles / deployment.bundle, self.release: self.releases / deployment.release}
        return State({link: str(target) for link, target in links.items()}, files)

    def put(self, state: State) -> None:
        """Restore the links and files of the state; one that is None stays as it is."""
        for file, content in state.files.items():
            if content is not None:
                replace_file(file, content)
        for link, target in state.links.items():
            if target is not None:
                replace_link(link, target)

    def activity(self) -> str:
        return run("systemctl", "is-active", SERVICE).stdout.strip()

    def is_active(self) -> bool:
        return self.activity() in ("active", "reloading")

    def is_changing(self) -> bool:
        return self.activity() in ("reloading", "activating", "deactivating")

    def can_reload(self) -> bool:
        return self.shown("CanReload") == "yes" and self.is_active()

    def shown(self, property_: str) -> str:
        return run("systemctl", "show", f"--property={property_}", "--value", SERVICE).stdout.strip()

    def restart(self, move_socket: bool, cursor: str) -> None:
        if move_socket:  # systemd cannot move an open socket
            run("systemctl", "stop", SOCKET)
        run("systemctl", "reset-failed", SERVICE)
        self.systemctl("restart", cursor)

    def systemctl(self, verb: str, cursor: str) -> None:
        """Reload or restart the service.

        Raises:
            DeploymentError: it failed; the message is what the service has logged since `cursor`.
        """
        answer = run("systemctl", verb, SERVICE)
        if answer.returncode:
            raise DeploymentError(logged_since(cursor) or answer.stderr.strip())

    def deployed(self) -> Optional[Deployment]:
        """Return the deployment that should serve."""
        return parsed(self.deployment.read_bytes()) if self.deployment.exists() else None

    def entries(self) -> List[Entry]:
        """Return the history, oldest first."""
        lines = self.history.read_text().splitlines() if self.history.exists() else []
        rows = [line.split() for line in lines if not line.startswith("#")]
        return [Entry(row[0], Deployment(*row[1:])) for row in rows if len(row) == 4]  # skip a truncated line

    def choices(self) -> List[Entry]:
        """Return what can be rolled back to, latest first, each pair of a release and a bundle once."""
        found: Dict[Sequence[str], Entry] = {}
        for entry in reversed(self.entries()):
            if self.can_be_started(entry.deployment) and self.settings_of(entry.deployment).exists():
                found.setdefault(entry.deployment[:2], entry)
        return list(found.values())

    def is_complete(self, deployment: Deployment) -> bool:
        release = self.releases / deployment.release
        files = (release / ".complete", release / "release.env")
        return all(file.is_file() for file in files) and (self.bundles / deployment.bundle).is_dir()

    def can_be_started(self, deployment: Deployment) -> bool:
        # The units run this console script; releases from before it have none.
        script = self.releases / deployment.release / "venv/bin/model-server"
        return self.is_complete(deployment) and script.is_file()

    def settings_of(self, deployment: Deployment) -> Path:
        return self.kept_settings / f"{deployment.settings}.env"

    def record(self, deployment: Deployment) -> None:
        """Append the deployment to the history, unless it is the last entry."""
        self.kept_settings.mkdir(mode=0o750, exist_ok=True)
        replace_file(self.settings_of(deployment), self.settings.read_bytes())
        entries = self.entries()
        if entries and entries[-1].deployment == deployment:
            return
        entries.append(Entry(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), deployment))
        lines = [" ".join((entry.since, *entry.deployment)) + "\n" for entry in entries]
        replace_file(self.history, "".join((HEADER, *lines)).encode())

    def prune(self) -> None:
        """Remove what is too old to be rolled back to, and what never served."""
        serving = self.deployed()
        choices = [] if serving is None else [serving]
        choices += [entry.deployment for entry in self.choices() if entry.deployment != serving]
        releases = list(dict.fromkeys(choice.release for choice in choices))[:KEPT]
        # A release that is kept needs the bundle that it served with last.
        last = {choice.release: choice.bundle for choice in reversed(choices)}
        bundles = list(dict.fromkeys(choice.bundle for choice in choices))[:KEPT] + [last[name] for name in releases]
        if self.shadow.is_symlink():
            bundles.append(os.path.basename(os.readlink(str(self.shadow))))
        settings = [
            self.settings_of(choice).name
            for choice in choices
            if choice.release in releases and choice.bundle in bundles
        ]
        for directory, names in ((self.releases, releases), (self.bundles, bundles), (self.kept_settings, settings)):
            for path in directory.iterdir():
                if path.name not in names:
                    remove(path)


def settle(host: Host) -> None:
    """Complete an earlier run that was killed: record what serves, or restore its links and files."""
    deadline = time.monotonic() + SETTLING
    while host.is_changing() and time.monotonic() < deadline:
        time.sleep(0.5)
    if not host.is_active():  # the files may not be those of a deployment that works
        return
    content = host.running.read_bytes() if host.running.exists() else b""
    serving = parsed(content)
    if serving is None or not host.deployment.exists():
        return
    if content == host.deployment.read_bytes():
        host.record(serving)
    elif host.is_complete(serving) and host.settings_of(serving).exists():
        host.put(
            host.state_of(serving, {host.settings: host.settings_of(serving).read_bytes(), host.deployment: content})
        )


def roll_over(host: Host, deployment: Deployment, files: Mapping[Path, Optional[bytes]]) -> None:
    """Start a deployment with these files.

    Raises:
        DeploymentError: it does not serve; what served before has been restored.
    """
    if not host.is_complete(deployment):
        raise DeploymentError(f"On this host {deployment} is not complete.")
    wanted, former = host.state_of(deployment, files), host.state()
    # Not by the unit files alone: an earlier run may have been killed before it restarted the service with them.
    new_units = units_in(former.files[host.deployment]) != units_in(files[host.deployment]) or any(
        former.files[unit] != files[unit] for unit in (host.service, host.socket)
    )
    move_socket = listening(former.files[host.socket]) not in ([], listening(files[host.socket]))
    # Ask before daemon-reload: the running service must support the handover, not the new unit.
    served, can_reload = host.is_active(), host.can_reload() and not move_socket
    process = host.shown("MainPID")
    cursor = end_of_journal()
    try:
        host.put(wanted)
        if new_units:
            check_units(host)
            run("systemctl", "daemon-reload")
        if can_reload:
            if new_units:  # the old units are still in effect, if this run is killed before the restart
                replace_file(host.deployment, naming(deployment, former.files[host.deployment] or b""))
            host.systemctl("reload", cursor)
        if new_units or not can_reload:
            host.put(wanted)
            host.restart(move_socket, cursor)
    except (DeploymentError, OSError) as error:
        failure = f"The deployment of {deployment} failed:\n{error}"
        # The first deployment: there is nothing to restore.
        if None in (*former.links.values(), *former.files.values()):
            raise DeploymentError(failure) from error
        host.put(former)
        if new_units:
            run("systemctl", "daemon-reload")
        if served and (move_socket or not host.is_active() or host.shown("MainPID") != process):
            try:
                host.restart(move_socket, end_of_journal())
            except DeploymentError as second:
                raise DeploymentError(f"{failure}\nWhat served before does not start either:\n{second}") from error
        outcome = "What served before keeps serving" if served else "What was deployed before has been restored"
        raise DeploymentError(f"{failure}\n{outcome}: {host.deployed()}.") from error


def apply(host: Host) -> str:
    """Deploy what the last play has laid out."""
    content = (host.next / "deployment").read_bytes()
    deployment = parsed(content)
    if deployment is None:
        raise DeploymentError(f"{host.next}/deployment names no release, bundle and settings.")
    files = {file: (host.next / file.name).read_bytes() for file in (host.settings, host.service, host.socket)}
    roll_over(host, deployment, {**files, host.deployment: content})
    host.record(deployment)
    host.prune()
    return f"{deployment} serves."


def rollback(host: Host, release: str) -> str:
    """Return to what served before, or to the named release with the bundle and settings that it served with last."""
    serving, choices = host.deployed(), [entry.deployment for entry in host.choices()]
    if serving is None:
        raise DeploymentError("Nothing has been deployed on this host yet; run site.yml.")
    if release:
        named = [choice for choice in choices if choice.release == release]
        if not named:
            names = ", ".join(dict.fromkeys(choice.release for choice in choices))
            raise DeploymentError(f"There is no release {release!r} to go back to; there are: {names or 'none'}.")
        wanted = named[0]
    else:
        others = [choice for choice in choices if choice[:2] != serving[:2]]
        if not others:
            raise DeploymentError(f"There is nothing to go back to: {serving} serves, and this host keeps no other.")
        wanted = others[0]
    if wanted == serving:
        return f"{serving} serves already; nothing was changed."
    started, files = time.monotonic(), dict(host.state().files)
    files[host.settings] = host.settings_of(wanted).read_bytes()
    files[host.deployment] = naming(wanted, files[host.deployment] or b"")
    roll_over(host, wanted, files)
    host.record(wanted)
    return f"{serving} served; {wanted} serves now, {time.monotonic() - started:.1f} s later."


def serve(host: Host, bundle: str) -> str:
    """Serve a bundle of this host with the release and the settings that serve; the same bundle is loaded again."""
    serving = host.deployed()
    if serving is None:
        raise DeploymentError("Nothing has been deployed on this host yet; run site.yml.")
    wanted, files = serving._replace(bundle=bundle), dict(host.state().files)
    files[host.deployment] = naming(wanted, files[host.deployment] or b"")
    roll_over(host, wanted, files)
    host.record(wanted)
    return f"{wanted} serves."


def drain(host: Host) -> str:
    """Take the server out of service: balancers see 503 at /readyz and send it nothing new; it goes on answering."""
    if not host.is_active():
        raise DeploymentError("The model server does not run on this host; there is nothing to drain.")
    put_out_of_service(host)
    return (
        "The server is drained: /readyz answers 503, other requests are served. `resume` ends it, and so does a stop."
    )


def put_out_of_service(host: Host) -> None:
    # The directory is the service's: what it may have put there is not followed.
    os.close(os.open(str(host.drained), os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o644))


@contextmanager
def drained(host: Host) -> Iterator[None]:
    """Keep the server out of service meanwhile, if MODEL_SERVER_DRAIN_SECONDS says how long balancers need to notice.

    A server that has been drained before stays so.
    """
    seconds = int(os.environ.get("MODEL_SERVER_DRAIN_SECONDS", "0"))
    was_drained = host.drained.exists()
    takes_out = seconds > 0 and not was_drained and host.is_active()
    if takes_out:
        put_out_of_service(host)
        time.sleep(seconds)
    try:
        yield
    finally:
        if takes_out:
            resume(host)
            time.sleep(seconds)
        elif was_drained and not host.drained.exists() and host.is_active():  # a socket that moves stops the service
            put_out_of_service(host)


def resume(host: Host) -> str:
    """Put a drained server back into service."""
    was_drained = host.drained.exists()
    if was_drained:
        host.drained.unlink()
    return "The server is in service again." if was_drained else "The server was not drained; nothing was changed."


def choices(host: Host) -> str:
    """List what can be rolled back to, latest first."""
    serving = host.deployed()
    return "\n".join(
        f"{entry.since} {entry.deployment}{', which serves' if entry.deployment == serving else ''}"
        for entry in host.choices()
    )


def parsed(content: bytes) -> Optional[Deployment]:
    """Return what the lines `release: …`, `bundle: …` and `settings: …` name; None when a name is missing."""
    fields = dict(line.split(": ", 1) for line in content.decode().splitlines() if ": " in line)
    names = [fields.get(field, "") for field in Deployment._fields]
    return Deployment(*names) if all(NAME.fullmatch(name) for name in names) else None


def units_in(content: Optional[bytes]) -> List[str]:
    return re.findall(r"(?m)^units: .*$", (content or b"").decode())


def listening(unit: Optional[bytes]) -> List[str]:
    """Return the settings in the section [Socket] of a unit: all that an open socket keeps."""
    section = (unit or b"").decode().partition("\n[Socket]\n")[2].partition("\n[")[0]
    return [line for line in section.splitlines() if line and not line.startswith("#")]


def naming(deployment: Deployment, content: bytes) -> bytes:
    """Return the content of a file `deployment`, changed to name this one."""
    text = content.decode()
    for field, name in deployment._asdict().items():
        text = re.sub(rf"(?m)^{field}: .*$", f"{field}: {name}", text)
    return text.encode()


def check_units(host: Host) -> None:
    """Raise DeploymentError for units that systemd rejects; both at once, since each refers to the other."""
    answer = run("env", "SYSTEMD_LOG_COLOR=0", "systemd-analyze", "verify", str(host.socket), str(host.service))
    if answer.returncode:
        raise DeploymentError(f"systemd rejects the units of {host.next}:\n{answer.stderr.strip()}")


def end_of_journal() -> str:
    shown = run("journalctl", "--lines=1", "--output=cat", "--show-cursor", "--no-pager", "--quiet").stdout
    return shown.rpartition("-- cursor: ")[2].strip()


def logged_since(cursor: str) -> str:
    """Return the model server's error messages in its journal since then; without any, its last lines."""
    run("journalctl", "--sync")
    options = ("--unit", SERVICE, f"--after-cursor={cursor}", "--output=json", "--no-pager", "--quiet")
    entries = [json.loads(line) for line in run("journalctl", *options).stdout.splitlines()]
    lines = [str(entry.get("MESSAGE")) for entry in entries if entry.get("SYSLOG_IDENTIFIER") != "systemd"]
    sentences = [line for line in lines if line.startswith("model server: ")]
    return "\n".join(dict.fromkeys(sentences) if sentences else lines[-LINES:])


def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)  # noqa: S603


def replace_file(path: Path, content: bytes) -> None:
    """Replace a file atomically, if it differs; its owner is that of its directory."""
    if path.exists() and path.read_bytes() == content:
        return
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(content)
    directory = path.parent.stat()
    os.chown(str(beside), directory.st_uid, directory.st_gid)
    beside.chmod(0o640 if path.suffix == ".env" else 0o644)
    beside.replace(path)


def replace_link(path: Path, target: str) -> None:
    beside = path.with_name(f".{path.name}.new")
    if beside.is_symlink():  # left by a run that was killed
        beside.unlink()
    beside.symlink_to(target)
    beside.replace(path)


def remove(path: Path) -> None:
    """Remove a release, a bundle or a file; it is renamed first, so that no half of it has its name."""
    beside = path.with_name(f"{path.name}.partial") if path.suffix != ".partial" else path
    path.replace(beside)
    if beside.is_dir():
        shutil.rmtree(str(beside), ignore_errors=True)  # the next run removes the rest
    else:
        beside.unlink()


def main(arguments: Optional[Sequence[str]] = None, root: Path = Path("/")) -> None:
    """Run the command line; exit with a message and status 1 if the wanted deployment does not serve."""
    parser = argparse.ArgumentParser(prog="model-server-deployment", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True
    commands.add_parser("apply", help="deploy what the last play has laid out in /etc/model-server/next")
    back = commands.add_parser(
        "rollback", help="return to what served before; a second rollback returns to the newer one"
    )
    back.add_argument("release", nargs="?", default="", help="this release, with the bundle that it served with last")
    other = commands.add_parser("serve", help="serve another bundle of this host, with the release that serves")
    other.add_argument("bundle")
    commands.add_parser("list", help="list what can be rolled back to, latest first")
    commands.add_parser(
        "drain", help="answer 503 to /readyz, so that balancers send nothing new; other requests are served"
    )
    commands.add_parser("resume", help="put a drained server back into service")
    options = parser.parse_args(arguments)
    host = Host(root)
    try:
        at_once = {"list": choices, "drain": drain, "resume": resume}  # these need not wait for a deployment
        if options.command in at_once:
            print(at_once[options.command](host))  # noqa: T201 - a command's answer
            return
        # A lost SSH connection or Ctrl-C must not leave links and service in different states.
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # Wait for a run whose play was killed.
        fcntl.flock(os.open(str(host.data), os.O_RDONLY), fcntl.LOCK_EX)
        settle(host)
        with drained(host):
            if options.command == "serve":
                said = serve(host, options.bundle)
            else:
                said = apply(host) if options.command == "apply" else rollback(host, options.release)
        print(said)  # noqa: T201
    except (DeploymentError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

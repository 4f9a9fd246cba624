"""The command line: a command prints JSON, or one sentence of what is wrong and exits with 1."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Callable, Sequence

from . import BackupError, archive, put_back, take
from .services import deployment, services

Options = argparse.Namespace


def survey(options: Options) -> Any:
    """Return what would be copied, and the same in sentences."""
    there, missing = take.survey(options.root)
    told = [f"{each['title']} {each['version']}: {archive.megabytes(each['bytes'])}" for each in there.values()]
    told += [f"{title} is not deployed on this host: skipped." for title in missing]
    return {"format": archive.FORMAT, "services": there, "deployment": deployment(options.root), "told": told}


def fits(options: Options) -> Any:
    """Return what is put back on this host of the copy with the manifest on standard input; the same in sentences."""
    copied = json.load(sys.stdin)
    there, _ = take.survey(options.root)
    room = {
        name: min(take.free(place.directory) for place in service.places.values())
        for name, service in services(options.root).items()
    }
    problems = archive.problems(copied, there, room)
    if problems:
        raise BackupError("\n".join(problems))
    told = [f"Backup of {copied['host']}, made at {copied['time']}."]
    order = [name for name in services(options.root) if name in copied["services"]]
    for name in order:
        service = copied["services"][name]
        told.append(
            f"{service['title']} {service['version']}: {archive.megabytes(service['bytes'])}"
            if name in there
            else f"{service['title']} is not deployed on this host: skipped."
        )
    return {"services": [name for name in order if name in there], "told": told}


# The names of arguments, and what a command does.
COMMANDS: dict[str, tuple[list[str], Callable[[Options], Any]]] = {
    "survey": ([], survey),
    "stage": ([], lambda options: [part._asdict() for part in take.stage(options.root)]),
    "pack": (["part", "file"], lambda options: take.pack(options.root, int(options.part), Path(options.file))),
    "drop": ([], lambda options: take.drop(options.root)),
    "room": (["directory"], lambda options: take.free(Path(options.directory))),
    "check": (["directory"], lambda options: archive.check(Path(options.directory))),
    "fits": ([], fits),
    "prepare": (["service"], lambda options: put_back.prepare(services(options.root)[options.service])),
    "unpack": (
        ["service", "place", "file"],
        lambda options: put_back.unpack(
            services(options.root)[options.service].places[options.place], Path(options.file)
        ),
    ),
    "swap": (["service"], lambda options: put_back.swap(services(options.root)[options.service])),
    "keep": (["service"], lambda options: put_back.keep(services(options.root)[options.service])),
    "undo": (["service"], lambda options: put_back.settle(services(options.root)[options.service])),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit with a sentence and status 1 if it cannot be done."""
    parser = argparse.ArgumentParser(prog="backup", description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (words, _) in COMMANDS.items():
        command = commands.add_parser(name)
        for word in words:
            command.add_argument(word)
    options = parser.parse_args(arguments)
    # A lost SSH connection or Ctrl-C must not leave half of the files moved, or a service stopped.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(19)  # the services of the host come first
    os.umask(0o077)
    try:
        print(json.dumps(COMMANDS[options.command][1](options)))  # noqa: T201 - a command's answer
    except (BackupError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

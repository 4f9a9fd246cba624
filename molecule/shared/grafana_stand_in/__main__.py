"""`grafana-server` and `grafana-cli` of the stand-in; which one it is comes as the first argument."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from . import NOTICE, VERSION, ConfigurationError
from .accounts import Accounts
from .server import Server
from .settings import read_settings


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="grafana", description=NOTICE)
    parser.add_argument("--version", "-v", action="version", version=f"Version {VERSION}")
    parts = parser.add_subparsers(dest="part", required=True)
    server = parts.add_parser("server")
    cli = parts.add_parser("cli")
    for part in (server, cli):
        part.add_argument("--version", "-v", action="version", version=f"Version {VERSION}")
        part.add_argument("--config", type=Path, default=Path("/etc/grafana/grafana.ini"))
    server.add_argument("--pidfile", help="not used")
    server.add_argument("--packaging", help="not used")
    server.add_argument("overrides", nargs="*", metavar="cfg:default.section.key=value")
    cli.add_argument("topic", choices=["admin"])
    cli.add_argument("command", choices=["reset-admin-password"])
    cli.add_argument("--password-from-stdin", action="store_true", required=True)
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed(sys.argv[1:])
    settings = read_settings(options.config, getattr(options, "overrides", []))
    if options.part == "cli":
        admin = settings["security.admin_user"], settings["security.admin_password"]
        Accounts(settings["paths.data"], *admin).set_password(sys.stdin.read().rstrip("\n"))
        print("Admin password changed successfully ✔")  # noqa: T201 - a command's answer
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(NOTICE, f"Version {VERSION}", flush=True)  # noqa: T201 - the journal
    Server(settings).serve_forever()


if __name__ == "__main__":
    try:
        main()
    except (ConfigurationError, OSError) as error:
        sys.exit(f"stand-in for Grafana: {error}")

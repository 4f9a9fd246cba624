"""`grafana-server` and `grafana-cli` of the stand-in; which one it is comes as the first argument."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from . import NOTICE, VERSION, ConfigurationError
from .configuration import read_settings
from .server import Database, Server


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="grafana", description=NOTICE)
    parser.add_argument("--version", "-v", action="version", version=f"Version {VERSION}")
    parts = parser.add_subparsers(dest="part", required=True)
    server = parts.add_parser("server")
    server.add_argument("--config", type=Path, required=True)
    for unused in ("--pidfile", "--packaging"):
        server.add_argument(unused)
    server.add_argument("overrides", nargs="*", metavar="cfg:default.section.key=value")
    admin = parts.add_parser("cli").add_subparsers(required=True).add_parser("admin").add_subparsers(required=True)
    admin.add_parser("reset-admin-password").add_argument("--password-from-stdin", action="store_true", required=True)
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed(sys.argv[1:])
    if options.part == "cli":
        settings = read_settings(Path("/etc/grafana/grafana.ini"), [])
        Database(settings).set_password(sys.stdin.read().rstrip("\n"))
        return
    server = Server(read_settings(options.config, options.overrides))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(NOTICE, f"Version {VERSION}", flush=True)  # noqa: T201 - for the journal
    server.serve_forever()


if __name__ == "__main__":
    try:
        main()
    except (ConfigurationError, OSError) as error:
        sys.exit(f"stand-in for Grafana: {error}")

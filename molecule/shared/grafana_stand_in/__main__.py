"""`grafana-server` and `grafana-cli` of the stand-in; which one it is comes as the first argument."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from . import NOTICE, VERSION, ConfigurationError, log
from .accounts import Accounts
from .server import Server
from .settings import read_settings

CONFIG = "/etc/grafana/grafana.ini"


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="grafana", description=NOTICE)
    parser.add_argument("--version", "-v", action="version", version=f"Version {VERSION}")
    parts = parser.add_subparsers(dest="part", required=True)
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--config", "-config", default=argparse.SUPPRESS)
    options.add_argument("--homepath", "-homepath", default=argparse.SUPPRESS)
    server = parts.add_parser("server", parents=[options])
    server.add_argument("--version", "-v", action="version", version=f"Version {VERSION}")
    server.add_argument("--pidfile", type=Path)
    server.add_argument("--packaging")
    server.add_argument("overrides", nargs="*", metavar="cfg:default.section.key=value", default=[])
    cli = parts.add_parser("cli", parents=[options])
    cli.add_argument("--version", "-v", action="version", version=f"Version {VERSION}")
    cli.add_argument("--configOverrides", dest="overrides", type=str.split, default=[])
    topics = cli.add_subparsers(dest="topic", required=True)
    admin = topics.add_parser("admin", parents=[options]).add_subparsers(dest="command", required=True)
    reset = admin.add_parser("reset-admin-password", parents=[options])
    reset.add_argument("--password-from-stdin", action="store_true")
    reset.add_argument("--user-id", type=int, choices=[1], default=1)
    reset.add_argument("password", nargs="?")
    return parser.parse_args(arguments)


def serve(options: argparse.Namespace) -> None:
    log.info("%s Version %s.", NOTICE, VERSION)
    server = Server(read_settings(Path(getattr(options, "config", CONFIG)), options.overrides))
    if options.pidfile:
        options.pidfile.write_text(str(os.getpid()))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    log.info("HTTP Server Listen, address %s port %s", *server.server_address[:2])
    server.serve_forever()


def reset_password(options: argparse.Namespace) -> None:
    password = sys.stdin.read().rstrip("\n") if options.password_from_stdin else options.password
    if not password:
        raise ConfigurationError(
            "Give the new password as an argument, or on standard input with --password-from-stdin."
        )
    settings = read_settings(Path(getattr(options, "config", CONFIG)), options.overrides)
    accounts = Accounts(settings["paths.data"], settings["security.admin_user"], settings["security.admin_password"])
    accounts.set_password(password)
    sys.stdout.write("\nAdmin password changed successfully ✔\n")


if __name__ == "__main__":
    logging.basicConfig(format="logger=%(name)s level=%(levelname)s msg=%(message)r", level=logging.INFO)
    try:
        chosen = parsed(sys.argv[1:])
        (serve if chosen.part == "server" else reset_password)(chosen)
    except (ConfigurationError, OSError) as error:
        log.error("%s", error)
        sys.exit(1)

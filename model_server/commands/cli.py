"""The command line `model-server`, which is also `python -m model_server`."""

import argparse
import os
import sys
from pathlib import Path
from typing import Optional, Sequence

from model_server.commands import CommandError
from model_server.commands.bundle import add_bundle
from model_server.commands.feedback import add_feedback
from model_server.commands.reference import add_reference
from model_server.commands.samples import add_samples
from model_server.commands.shadow import add_shadow
from model_server.model.bundle import BundleError, refuse_existing
from model_server.server.handover import HandoverError, reload_service
from model_server.settings import SettingsError


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command line.

    Ends with a sentence and exit status 1 when the command could not be carried out; as shells have it, with 130 after
    Ctrl-C, and 141 when nobody reads its output any more.
    """
    parser = argparse.ArgumentParser(prog="model-server", description="Prepare models for the model server.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    add_bundle(commands)
    add_reference(commands)
    add_feedback(commands)
    add_samples(commands)
    add_train_demo(commands)
    add_handover(commands)
    add_shadow(commands)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (BundleError, CommandError, SettingsError, HandoverError) as error:
        sys.exit(f"{options.prefix}: {error}")
    except KeyboardInterrupt:
        print(f"{options.prefix}: interrupted.", file=sys.stderr)  # noqa: T201 - a command's error
        sys.exit(130)
    except BrokenPipeError:  # whoever read the output has enough, like `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes the rest at its end
        sys.exit(141)


def add_train_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `model-server train-demo` to the commands."""
    parser = commands.add_parser(
        "train-demo",
        help="train the demonstration's model",
        description="Train the fruit classifier on drawings and write a bundle.",
    )
    parser.set_defaults(run=train_demo, prefix="train-demo")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the bundle to write; nothing may be there"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same weights (default: 0)")


def train_demo(options: argparse.Namespace) -> None:
    """Train the demonstration's model."""
    refuse_existing(options.out)  # before the import of torch, which takes seconds
    from model_server.commands.train_demo import write_demo_bundle  # noqa: PLC0415

    write_demo_bundle(options.out, options.seed)


def add_handover(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `model-server handover` to the commands."""
    parser = commands.add_parser(
        "handover",
        help="for systemd alone: systemctl reload model-server runs it",
        description="Let a new gunicorn take over from the running one; the unit's ExecReload.",
    )
    parser.set_defaults(run=lambda _: reload_service(), prefix="model server: handover")

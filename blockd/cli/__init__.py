"""The command line: one file a command."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from blockd import __version__
from blockd.problems import InputError

#: Every command: its module has HELP, add_arguments(parser) and run(arguments) -> exit code.
COMMANDS = ("serve", "compile", "check", "explain", "reload")

#: Exit codes: 0 done, 1 the inputs or the daemon said no, 2 the command line is wrong.
EXIT_NO = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, give its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="blockd", description="A resolver that bans an app from the devices you own.")
    parser.add_argument("--version", action="version", version=f"blockd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # A command that is named is imported alone: a reload should not wait for what other commands need.
    for name in COMMANDS if not arguments or arguments[0] not in COMMANDS else arguments[:1]:
        module: Any = importlib.import_module(f"blockd.cli.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    try:
        code: int = parsed.run(parsed)
        return code
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_NO

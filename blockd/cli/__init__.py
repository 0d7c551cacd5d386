"""The command line: one file a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from blockd import __version__
from blockd.cli import check, compile, explain, reload, serve
from blockd.problems import InputError

#: Every command: its module has HELP, add_arguments(parser) and run(arguments) -> exit code.
COMMANDS: dict[str, Any] = {"serve": serve, "compile": compile, "check": check, "explain": explain, "reload": reload}

#: Exit codes: 0 done, 1 the inputs or the daemon said no, 2 the command line is wrong.
EXIT_NO = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, give its exit code."""
    parser = argparse.ArgumentParser(prog="blockd", description="A resolver that bans an app from the devices you own.")
    parser.add_argument("--version", action="version", version=f"blockd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(command)
    parsed = parser.parse_args(arguments)
    try:
        code: int = COMMANDS[parsed.command].run(parsed)
        return code
    except InputError as error:
        print(error, file=sys.stderr)
        return EXIT_NO

"""``blockd reload``: take the config in as it stands, or say why not."""

from __future__ import annotations

import argparse
import json
import sys

from blockd.cli.daemon_socket import add_socket_arguments, socket_path
from blockd.control import ControlError, ask
from blockd.problems import Problem

HELP = "make the daemon take in its config, apps and lists; all of it or nothing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_socket_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Reload; 1 when nothing was changed."""
    try:
        answer = ask(socket_path(arguments), "reload")
    except ControlError as error:
        print(f"blockd reload: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(answer))
        return 0 if answer["ok"] else 1
    if answer["ok"]:
        print(f"reloaded: rules generation {answer['rules_generation']}, views generation {answer['views_generation']}")
        return 0
    for problem in answer.get("problems", []):
        print(Problem(**problem), file=sys.stderr)
    if "error" in answer:
        print(f"blockd reload: {answer['error']}", file=sys.stderr)
    print("nothing was changed", file=sys.stderr)
    return 1

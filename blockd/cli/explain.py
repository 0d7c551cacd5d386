"""``blockd explain``: why a device gets what it gets for a name."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from typing import Any

from blockd.cli.daemon_socket import add_socket_arguments, socket_path
from blockd.control import ControlError, ask
from blockd.fastpath import Fastpath, load
from blockd.policy.compile import compile_snapshot
from blockd.policy.explain import explain, read_client, read_meta, read_question
from blockd.policy.inputs import read_inputs

HELP = "print the whole reasoning for one question of one device"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_socket_arguments(parser)
    parser.add_argument("--client", required=True, metavar="ADDR", help="the device's address")
    parser.add_argument("--offline", action="store_true", help="compile the config instead of asking the daemon")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("name", metavar="NAME", help="the question name")
    parser.add_argument("type", metavar="TYPE", nargs="?", default="A", help="the query type (default: A)")


def run(arguments: argparse.Namespace) -> int:
    """Explain; 1 when the question makes no sense or nobody can answer it."""
    try:
        read_client(arguments.client)
        read_question(arguments.name, arguments.type)
    except ValueError as error:
        print(f"blockd explain: {error}", file=sys.stderr)
        return 1
    path = socket_path(arguments)
    if not arguments.offline and (arguments.config is None or path.exists()):
        try:
            question = {"client": arguments.client, "name": arguments.name, "type": arguments.type}
            answer = ask(path, "explain", **question)
            if not answer["ok"]:
                print(f"blockd explain: {answer['error']}", file=sys.stderr)
                return 1
            _print(answer["explanation"], answer["lines"], arguments.json)
            return 0
        except ControlError as error:
            print(f"blockd explain: {error}", file=sys.stderr)
            if arguments.config is None:
                return 1
            print("explained from the files as they stand, which may not be in force", file=sys.stderr)
    if arguments.config is None:
        print("blockd explain: --offline needs --config", file=sys.stderr)
        return 1
    return _offline(arguments)


def _offline(arguments: argparse.Namespace) -> int:
    client = read_client(arguments.client)
    name, qtype = read_question(arguments.name, arguments.type)
    inputs = read_inputs(arguments.config)
    with tempfile.NamedTemporaryFile() as file:
        file.write(compile_snapshot(inputs).snapshot)
        file.flush()
        snapshot = load(file.name)
    decision = Fastpath(snapshot, [], 0, 0).decide(client, name, qtype)
    explanation = explain(inputs, decision, read_meta(snapshot), client, name, arguments.type.upper())
    _print(explanation.as_json(), explanation.lines(), arguments.json)
    return 0


def _print(explanation: dict[str, Any], lines: list[str], as_json: bool) -> None:
    print(json.dumps(explanation, indent=1) if as_json else "\n".join(lines))

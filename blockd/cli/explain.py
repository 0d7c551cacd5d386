"""``blockd explain``: why a device gets what it gets for a name."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from blockd.cli.options import Config, Json, Socket, config_path, socket_path
from blockd.cli.output import STYLES, complain, print_json, print_rows, refuse
from blockd.control import ControlError, ask
from blockd.fastpath import Fastpath, load
from blockd.policy.compile import compile_snapshot
from blockd.policy.explain import explain as explain_decision
from blockd.policy.explain import read_client, read_meta, read_question
from blockd.policy.inputs import read_inputs

#: Query types that a shell offers.
TYPES = ("A", "AAAA", "HTTPS", "SVCB", "CNAME", "TXT", "MX", "PTR", "NS", "SRV")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(explain)


def explain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The question name.")],
    client: Annotated[str, typer.Option("--client", metavar="ADDR", help="The device's address.")],
    qtype: Annotated[
        str, typer.Argument(metavar="TYPE", help="The query type.", autocompletion=lambda: list(TYPES))
    ] = "A",
    config: Config = None,
    socket: Socket = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Compile the config instead of asking the daemon.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print the whole reasoning for one question of one device; asks the daemon when it answers."""
    try:
        read_client(client)
        read_question(name, qtype)
    except ValueError as error:
        refuse("explain", str(error), as_json)
    if not offline:
        path = socket_path(config, socket)
        if socket is not None or path.exists():
            try:
                answer = ask(path, "explain", client=client, name=name, type=qtype)
            except ControlError as error:
                if socket is not None and config is None:
                    refuse("explain", str(error), as_json)
                complain(f"blockd explain: {error}")
                complain("explained from the files as they stand, which may not be in force")
            else:
                if not answer["ok"]:
                    refuse("explain", answer["error"], as_json)
                _print(answer["explanation"], answer["rows"], as_json)
                return
    if offline and config is None and socket is not None:
        refuse("explain", "--offline needs --config", as_json)
    _offline(config_path(config), client, name, qtype, as_json)


def _offline(config: Path, client: str, name: str, qtype: str, as_json: bool) -> None:
    address = read_client(client)
    question, number = read_question(name, qtype)
    inputs = read_inputs(config)
    with tempfile.NamedTemporaryFile() as file:
        compile_snapshot(inputs, Path(file.name))
        snapshot = load(file.name)
    decision = Fastpath(snapshot, [], 0, 0).decide(address, question, number)
    explanation = explain_decision(inputs, decision, read_meta(snapshot), address, question, qtype.upper())
    _print(explanation.as_json(), explanation.rows(), as_json)


def _print(explanation: dict[str, Any], rows: list[tuple[str, str]], as_json: bool) -> None:
    if as_json:
        print_json(explanation)
    else:
        print_rows(rows, {"verdict": STYLES.get(explanation["action"], ""), "question": "bold"})

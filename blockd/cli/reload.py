"""``blockd reload``: take the config in as it stands, or say why not."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from blockd.cli.options import Config, Json, Socket, socket_path
from blockd.cli.output import ask_daemon, complain, say, show_changes
from blockd.problems import Problem


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(reload)


def reload(
    config: Config = None,
    socket: Socket = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Take it though the gate refuses it: a list shrinks, grows or is junk.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Change nothing: say what would be gained and lost."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the daemon take in its config, apps and lists; all of it or nothing. Exit code 1: nothing was changed."""
    answer = ask_daemon("reload", socket_path(config, socket), "reload", as_json, accept=accept, dry_run=dry_run)
    if as_json:
        print(json.dumps(answer))
    elif "changes" in answer:
        show_changes(answer)
    elif answer["ok"]:
        say(f"reloaded: rules generation {answer['rules_generation']}, views generation {answer['views_generation']}")
    else:
        for problem in answer.get("problems", []):
            complain(Problem(**problem))
        complain("nothing was changed")
    if not answer["ok"]:
        raise typer.Exit(1)

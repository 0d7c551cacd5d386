"""``blockd lists``: what is in force of other people's lists, what was refused, and the way back."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer

from blockd.cli.options import Config, Json, Socket, socket_path
from blockd.cli.output import ask_daemon, complain, duration, print_json, print_table, say, show_changes
from blockd.problems import Problem


def register(app: typer.Typer) -> None:
    """Add the commands."""
    lists = typer.Typer(help="Show other people's lists, what the gate refused of them, and go back.")
    lists.callback(invoke_without_command=True)(show)
    lists.command()(fetch)
    lists.command()(accept)
    lists.command()(rollback)
    app.add_typer(lists, name="lists")


def show(context: typer.Context, config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Show each list in force, and the candidate that was refused, if there is one."""
    context.obj = (config, socket, as_json)
    if context.invoked_subcommand is not None:
        return
    answer = _ask(config, socket, "lists", as_json, is_shown=not as_json)
    if as_json:
        print_json(answer)
        return
    held = ", held since a rollback" if answer["is_held"] else ""
    say(f"generation {answer['generation']}{held}")
    if answer["lists"]:
        say()
        heads = ["APP", "LIST", "FORMAT", "KIND", "NAMES", "SKIPPED", "SHA-256", "CHANGED"]
        print_table(heads, [_row(row) for row in answer["lists"]], right=["NAMES", "SKIPPED"])
    sources = [(row["app"], row["source"]) for row in answer["lists"] if row["source"]]
    if sources:
        say()
        heads = ["APP", "SOURCE", "LAST RESULT", "CONFIRMED", "NEXT"]
        print_table(heads, [_source_row(app, source) for app, source in sources])
    for app, source in sources:
        if source["reason"]:
            where = f" (what came is {source['refused']})" if source["refused"] else ""
            say(f"  {app}: {source['reason']}{where}")
        if source["put_off"]:
            say(f"  {app}: {source['put_off']}")
        elif source["is_waiting"]:
            why = (
                f"{answer['generation']} is held since a rollback, until blockd reload"
                if answer["is_held"]
                else "its turn"
            )
            say(f"  {app}: what came waits: {why}")
    if answer["staged"]:
        say()
        say("staged, and not in force:")
        for problem in answer["staged"]:
            say(f"  {Problem(**problem)}")


def fetch(
    context: typer.Context,
    apps: Annotated[
        list[str] | None, typer.Argument(metavar="[APP]...", help="Lists of these apps; of all without any.")
    ] = None,
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Fetch lists from elsewhere now, and take in what changed. Exit code 1: one failed, was refused, or waits."""
    before = context.obj
    as_json = as_json or before[2]
    answer = _ask(config or before[0], socket or before[1], "fetch", as_json, apps=apps or [], is_shown=not as_json)
    if as_json:
        print_json(answer)
    else:
        for source in answer["sources"]:
            said = f"{source['result']}: {source['reason']}" if source["reason"] else source["result"]
            (say if source["result"] in ("new", "unchanged") else complain)(f"{source['url']}: {said}")
            if source["put_off"]:
                complain(f"{source['url']}: {source['put_off']}")
        if answer["is_held"]:
            complain("what was fetched waits: a generation is held since a rollback, until blockd reload")
    if not answer["ok"]:
        raise typer.Exit(1)


def accept(
    context: typer.Context,
    which: Annotated[
        str, typer.Argument(metavar="APP|URL", help="What came for the list of this app, or from this URL.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing: say what would be gained and lost.")
    ] = False,
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Take in what was fetched and refused, as `blockd lists` shows it. Exit code 1: nothing was changed."""
    before = context.obj
    as_json = as_json or before[2]
    answer = _ask(config or before[0], socket or before[1], "accept", as_json, apps=[which], dry_run=dry_run)
    if as_json:
        print_json(answer)
    elif "changes" in answer:
        show_changes(answer)
    else:
        if answer["ok"]:
            for source in answer["sources"]:
                say(f"{source['url']}: taken in, though {source['reason']}")
        for problem in answer.get("problems", []):
            complain(Problem(**problem))
        if not answer["ok"]:
            complain("nothing was changed")
    if not answer["ok"]:
        raise typer.Exit(1)


def rollback(context: typer.Context, config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Go back to the generation before this one, at once; it holds until `blockd reload`. Exit code 1: it cannot."""
    # What stands before the command's name counts as well.
    before = context.obj
    as_json = as_json or before[2]
    answer = _ask(config or before[0], socket or before[1], "rollback", as_json)
    if as_json:
        print_json(answer)
    elif answer["ok"]:
        say(f"generation {answer['generation']} is in force, and holds until blockd reload")
    else:
        for problem in answer["problems"]:
            complain(Problem(**problem))
    if not answer["ok"]:
        raise typer.Exit(1)


def _ask(config: Config, socket: Socket, do: str, as_json: bool, **arguments: Any) -> dict[str, Any]:
    name = "lists" if do == "lists" else f"lists {do}"
    return ask_daemon(name, socket_path(config, socket), do, as_json, **arguments)


def _row(row: dict[str, Any]) -> list[object]:
    age = f"{duration(row['age'])} ago" if "age" in row else "gone"
    digest = (row["sha256"] or "-")[:12]
    file = Path(row["file"])
    with contextlib.suppress(ValueError):
        file = file.relative_to(Path.cwd())
    return [row["app"], file, row["format"] or "-", row["kind"], row["kept"], row["skipped"], digest, age]


def _source_row(app: str, source: dict[str, Any]) -> list[object]:
    result = source["result"] or "not yet"
    if result == "fetching" and source["octets"]:
        of = f" of {source['of'] >> 10}" if source["of"] else ""
        result = f"fetching, {source['octets'] >> 10}{of} KiB"
    confirmed = "never" if source["confirmed_ago"] is None else f"{duration(source['confirmed_ago'])} ago"
    return [app, source["url"], result, confirmed, f"in {duration(source['next_in'])}"]

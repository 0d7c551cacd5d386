"""``blockd devices``: which devices are known, by which evidence, and who has an address."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from blockd.cli.options import Config, Json, Socket, socket_path
from blockd.cli.output import ask_daemon, complain, duration, print_json, print_table, say
from blockd.problems import Problem, skipped_lines


def register(app: typer.Typer) -> None:
    """Add the commands."""
    devices = typer.Typer(help="Show which devices are known, and who has an address.")
    devices.callback(invoke_without_command=True)(show)
    devices.command()(who)
    app.add_typer(devices, name="devices")


def show(context: typer.Context, config: Config = None, socket: Socket = None, as_json: Json = False) -> None:
    """Count devices by group and source, and show what each inventory skips and how each lease file does."""
    context.obj = (config, socket, as_json)
    if context.invoked_subcommand is not None:
        return
    answer = _ask(config, socket, as_json, "")
    if as_json:
        print_json(answer)
        return
    heads = ["GROUP", "NETWORKS", "INVENTORY", "LEASED"]
    keys = ("group", "networks", "inventory", "leased")
    print_table(heads, [[row[key] for key in keys] for row in answer["groups"]], right=heads[1:])
    if answer["inventories"]:
        say()
        heads = ["INVENTORY", "GROUP", "DEVICES", "SKIPPED"]
        lines = [
            [row["file"], row["group"], row["devices"], sum(row["skipped"].values())] for row in answer["inventories"]
        ]
        print_table(heads, lines, right=heads[2:])
        for row in answer["inventories"]:
            for line in skipped_lines(row["file"], row):
                say(line)
    if answer["feeds"]:
        say()
        heads = ["LEASES", "FORMAT", "COUNT", "SKIPPED", "READ", "PROBLEM"]
        rows = [
            [row["file"], row["format"], row["leases"], row["skipped"], _age(row["age"]), row["problem"] or ""]
            for row in answer["feeds"]
        ]
        print_table(heads, rows, right=["COUNT", "SKIPPED"])
        for row in answer["feeds"]:
            for sample in row["records"]["samples"]:
                complain(f"{Problem(**sample)}; the record is skipped")
    if answer["states"]:
        say()
        say("leases: " + ", ".join(f"{count} {state}" for state, count in sorted(answer["states"].items())))
    for shown in answer["likely_forwarders"]:
        say(f"likely a forwarder, and not listed under server.forwarders: {shown}")


def who(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="ADDRESS|MAC|NAME", help="An address, a MAC, a serial or a hostname.")],
    config: Config = None,
    socket: Socket = None,
    as_json: Json = False,
) -> None:
    """Show every address that is tied to a device, all evidence for it, and the group that won."""
    above = context.obj or (None, None, False)
    as_json = as_json or above[2]
    answer = _ask(config or above[0], socket or above[1], as_json, name)
    if as_json:
        print_json(answer)
        return
    for row in answer["addresses"]:
        say(f"{row['address']} is in {row['group']}")
        for part in row["evidence"]:
            say(f"  {part['source']}: {part['says']}")
    if answer["more"]:
        say(f"and {answer['more']} more")
    for mac in answer["without_lease"]:
        say(f"{mac} has no lease now")


def _age(seconds: float | None) -> str:
    return "never" if seconds is None else f"{duration(seconds)} ago"


def _ask(config: Any, socket: Any, as_json: bool, name: str) -> dict[str, Any]:
    return ask_daemon("devices", socket_path(config, socket), "devices", as_json, who=name)

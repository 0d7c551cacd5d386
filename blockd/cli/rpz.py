"""``blockd rpz``: a group's policy as a response policy zone, for resolvers that a site runs already."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from blockd.cli.options import Config, config_path
from blockd.cli.output import complain, refuse, say
from blockd.policy.compile import compile_snapshot
from blockd.policy.inputs import read_inputs
from blockd.policy.zones import policy_zone


def register(app: typer.Typer) -> None:
    """Add the commands."""
    rpz = typer.Typer(help="Write a group's policy as a response policy zone.", no_args_is_help=True)
    rpz.callback()(_group)
    rpz.command()(export)
    app.add_typer(rpz, name="rpz")


def _group(context: typer.Context, config: Config = None) -> None:
    """Write a group's policy as a response policy zone."""
    context.obj = config


def export(
    context: typer.Context,
    group: Annotated[str, typer.Option("--group", help="Whose policy.")],
    zone: Annotated[
        str | None, typer.Option("--zone", help="The zone's name; that of transfer.zones without, or rpz.invalid.")
    ] = None,
    config: Config = None,
) -> None:
    """Print the zone file of a config as it stands; stderr says what has no form in it. Exit code 1: there is none."""
    inputs = read_inputs(config_path(config or context.obj))
    served = inputs.settings.transfer.zones.get(group)
    zone = zone or ("rpz.invalid" if served is None else served.zone)
    with tempfile.TemporaryDirectory() as directory:
        snapshot = Path(directory) / "snapshot"
        compile_snapshot(inputs, snapshot)
        try:
            written = policy_zone(inputs, snapshot, group, zone)
        except ValueError as error:
            refuse("rpz export", str(error), as_json=False)
    say(f"$ORIGIN {zone}.")
    say("@ 60 SOA blockd.invalid. hostmaster.invalid. 1 60 15 2592000 15")
    say("@ 60 NS blockd.invalid.")
    for line in written.lines:
        say(line)
    for what, count in sorted(written.not_expressed.items()):
        complain(f"{count} {what}: not in the zone, for it has no form there")

"""``blockd compile``: from config, catalogue and lists to a snapshot, as each reload does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from blockd.cli.options import Config, Json, config_path
from blockd.cli.output import complain
from blockd.compiling import write_generation
from blockd.policy.compile import SNAPSHOT


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compile")(compile_inputs)


def compile_inputs(
    output: Annotated[Path, typer.Option("--output", help="The directory to make.")],
    config: Config = None,
    as_json: Json = False,
    against: Annotated[
        Path | None, typer.Option(help="A generation: write beside the snapshot what changes against it.")
    ] = None,
) -> None:
    """Write a snapshot, and the inputs that it was made of, into a new directory."""
    compiled = write_generation(config_path(config), output, against)
    if as_json:
        print(json.dumps({"lists": compiled.lists}))
    else:
        complain(f"{output}: {(output / SNAPSHOT).stat().st_size} octets")

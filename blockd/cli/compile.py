"""``blockd compile``: from config, catalogue and lists to a snapshot; the daemon runs it for each reload."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from blockd.cli.options import Config, Json, config_path
from blockd.cli.output import complain
from blockd.memory import COMPILE_FACTOR, COMPILE_OCTETS_A_LINE, too_large
from blockd.policy.compile import compile_snapshot, write_generation
from blockd.policy.inputs import read_inputs
from blockd.problems import InputError, Problem
from blockd.settings.source import Disk


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("compile")(compile_inputs)


def compile_inputs(
    output: Annotated[Path, typer.Option("--output", help="The directory to make.")],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Write a snapshot, and the inputs that it was made of, into a new directory."""
    building = output.with_name(f"{output.name}.{os.getpid()}.new")
    source = Disk()
    try:
        inputs = read_inputs(config_path(config), source)
        octets = list(source.files.values())
        needed = sum(COMPILE_FACTOR * len(data) + COMPILE_OCTETS_A_LINE * data.count(b"\n") for data in octets)
        if problems := too_large(str(inputs.config), f"the {len(octets)} files", needed):
            raise InputError(problems)
        compiled = compile_snapshot(inputs)
        try:
            write_generation(inputs, compiled, building)
            building.rename(output)
        except OSError as error:
            # Nothing is left behind.
            shutil.rmtree(building, ignore_errors=True)
            raise InputError([Problem(str(output), 0, "", f"cannot be written: {error.strerror}")]) from None
    except InputError as error:
        if as_json:
            files = sorted(map(str, source.tried))
            print(json.dumps({"problems": [problem.as_json() for problem in error.problems], "files": files}))
            raise typer.Exit(1) from None
        raise
    if as_json:
        print(json.dumps({"lists": compiled.lists}))
    else:
        complain(f"{output}: {len(compiled.snapshot)} octets")

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
from blockd.fastpath import end_with_parent
from blockd.memory import compile_octets, too_large
from blockd.policy.changes import changes
from blockd.policy.compile import CHANGES, SNAPSHOT, compile_snapshot, write_inputs
from blockd.policy.inputs import read_inputs
from blockd.problems import InputError, Problem
from blockd.settings.source import INPUTS, Disk, Kept


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
    parent: Annotated[int | None, typer.Option(hidden=True, help="The process that this one ends with.")] = None,
) -> None:
    """Write a snapshot, and the inputs that it was made of, into a new directory."""
    if parent is not None and not end_with_parent(parent):
        raise typer.Exit(1)
    file = config_path(config)
    building = output.with_name(f"{output.name}.{os.getpid()}.new")
    source = Disk(spool=building / INPUTS)
    try:
        (building / INPUTS).mkdir(parents=True)
        inputs = read_inputs(file, source)
        needed = compile_octets(source.files.values(), source.list_octets, source.list_lines)
        if problems := too_large(str(inputs.config), f"the {len(source.paths)} files", needed):
            raise InputError(problems)
        compiled = compile_snapshot(inputs, building / SNAPSHOT, output.name)
        octets = (building / SNAPSHOT).stat().st_size
        write_inputs(inputs, compiled, building)
        if against is not None:
            before = read_inputs(inputs.config, Kept(against))
            (building / CHANGES).write_text(json.dumps(changes(before, inputs)))
        building.rename(output)
    except (InputError, OSError) as error:
        problems = [Problem(str(output), 0, "", f"cannot be written: {error}")]
        if isinstance(error, InputError):
            problems = error.problems
        if as_json:
            files = sorted(map(str, source.tried))
            print(json.dumps({"problems": [problem.as_json() for problem in problems], "files": files}))
            raise typer.Exit(1) from None
        raise InputError(problems) from None
    finally:
        # Nothing is left behind, whatever happened; what was renamed is not there any more.
        shutil.rmtree(building, ignore_errors=True)
    if as_json:
        print(json.dumps({"lists": compiled.lists}))
    else:
        complain(f"{output}: {octets} octets")

"""``blockd compile``: from config, catalogue and lists to a snapshot; the daemon runs it for each reload."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from blockd.policy.compile import compile_snapshot, write_generation
from blockd.policy.inputs import read_inputs
from blockd.problems import InputError, Problem

HELP = "write a snapshot and the inputs that it was made of into a new directory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--config", type=Path, required=True, help="the config file")
    parser.add_argument("--output", type=Path, required=True, help="the directory to make")
    parser.add_argument("--json", action="store_true", help="print problems or the lists' counts as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Compile; 1 when the inputs are wrong, and then nothing is left behind."""
    output: Path = arguments.output
    building = output.with_name(f"{output.name}.{os.getpid()}.new")
    try:
        inputs = read_inputs(arguments.config)
        compiled = compile_snapshot(inputs)
        try:
            write_generation(inputs, compiled, building)
            building.rename(output)
        except OSError as error:
            shutil.rmtree(building, ignore_errors=True)
            raise InputError([Problem(str(output), 0, "", f"cannot be written: {error.strerror}")]) from None
    except InputError as error:
        if arguments.json:
            print(json.dumps({"problems": [problem.as_json() for problem in error.problems]}))
            return 1
        raise
    if arguments.json:
        print(json.dumps({"lists": compiled.lists}))
    else:
        print(f"{output}: {len(compiled.snapshot)} octets", file=sys.stderr)
    return 0

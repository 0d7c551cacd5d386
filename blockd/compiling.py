"""One compile: from the files as they stand to the directory of a new generation.

The daemon runs this module as a process, for it holds memory and the interpreter; `blockd compile` calls it.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    # It ends before the collector would find anything, and looking, from the imports on, takes a tenth of its time.
    gc.disable()

from blockd.fastpath import end_with_parent
from blockd.memory import compile_octets, too_large
from blockd.policy.changes import changes
from blockd.policy.compile import CHANGES, SNAPSHOT, Compiled, compile_snapshot, write_inputs
from blockd.policy.inputs import read_inputs
from blockd.problems import InputError, Problem, os_text
from blockd.settings.source import INPUTS, Arrived, Disk, Kept


class CompileError(InputError):
    """What is wrong, and the files that were read or asked for: a change of one of them may mend it."""

    def __init__(self, problems: list[Problem], files: set[Path]) -> None:
        """Take both."""
        super().__init__(problems)
        self.files = files


def write_generation(
    config: Path,
    output: Path,
    against: Path | None = None,
    base: Path | None = None,
    arrived: Mapping[Path, Path] | None = None,
) -> Compiled:
    """Write a snapshot, and the inputs that it was made of, into a new directory; CompileError leaves none.

    With `against`, a generation, also what changes from there. With `base`, another, inputs are its own and not the
    files as they stand, but for the lists of `arrived`, which says where they lie.
    """
    building = output.with_name(f"{output.name}.{os.getpid()}.new")
    source = Disk(building / INPUTS)
    try:
        (building / INPUTS).mkdir(parents=True)
        if base is not None:
            source = Arrived(Kept(base), arrived or {}, building / INPUTS)
        inputs = read_inputs(config, source)
        needed = compile_octets(source.files.values(), source.list_octets, source.list_lines)
        if problems := too_large(str(inputs.config), f"the {len(source.paths)} files", needed):
            raise InputError(problems)
        compiled = compile_snapshot(inputs, building / SNAPSHOT, output.name)
        write_inputs(inputs, compiled, building)
        if against is not None:
            before = read_inputs(inputs.config, Kept(against))
            (building / CHANGES).write_text(json.dumps(changes(before, inputs)))
        building.rename(output)
    except InputError as error:
        raise CompileError(error.problems, source.tried) from None
    except OSError as error:
        problem = Problem(str(output), 0, "", f"cannot be written: {os_text(error)}")
        raise CompileError([problem], source.tried) from None
    finally:
        # Nothing is left behind, whatever happened; what was renamed is not there any more.
        shutil.rmtree(building, ignore_errors=True)
    return compiled


def main(words: list[str]) -> int:
    """Run one for a daemon: its process ID, config and output, and the other parameters as JSON.

    Ends with the daemon, which would start another that writes to the same place. Prints what is wrong as JSON.
    """
    parent, config, output, more = words
    if not end_with_parent(int(parent)):
        return 1
    try:
        rest = json.loads(more)
        against, base = (Path(rest[key]) if key in rest else None for key in ("against", "base"))
        arrived = {Path(path): Path(file) for path, file in rest.get("arrived", {}).items()}
        write_generation(Path(config), Path(output), against, base, arrived)
    except CompileError as error:
        files = sorted(map(str, error.files))
        print(json.dumps({"problems": [problem.as_json() for problem in error.problems], "files": files}))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

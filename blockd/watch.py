"""Sees that files changed, by looking: on every file system, behind links, and when a file is replaced whole."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

#: Seconds between two looks, and without a change until one counts: editors and copies write in steps.
LOOK_INTERVAL = 0.5
QUIET = 1.0

#: Path -> what tells one state of a file from another.
Signature = dict[str, tuple[int, int, int, int] | None]


def signature(files: Iterable[Path], directories: Iterable[Path], list_directories: Iterable[Path] = ()) -> Signature:
    """Take the state of files, of the YAML files of directories, and of all other files of directories of lists."""
    paths = {str(file) for file in files}
    for is_for_lists, each in ((False, directories), (True, list_directories)):
        for directory in each:
            try:
                names = os.listdir(directory)
            except OSError:
                paths.add(str(directory))
                continue
            paths |= {f"{directory}/{name}" for name in names if name.endswith((".yaml", ".yml")) != is_for_lists}
    return {path: _state(path) for path in paths if not os.path.basename(path).startswith(".")}


def _state(path: str) -> tuple[int, int, int, int] | None:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino, stat.st_dev


class Watch:
    """Compares what is with what was taken in; time is an argument, seconds."""

    def __init__(self, taken_in: Signature) -> None:
        """Start from what the policy in force was made of."""
        self._taken_in = taken_in
        self._seen = taken_in
        self._since = 0.0

    def taken_in(self, state: Signature) -> None:
        """Note what a reload read, accepted or not: a refused one is not tried again until something changes."""
        self._taken_in = self._seen = state

    def look(self, state: Signature, now: float) -> bool:
        """Say whether a reload is due: something changed, and nothing did for a second."""
        if state != self._seen:
            self._seen, self._since = state, now
        return state != self._taken_in and now - self._since >= QUIET

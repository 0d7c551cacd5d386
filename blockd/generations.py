"""The state directory: generations of snapshot and inputs, the accepted one behind a link, a few older ones kept."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from blockd.policy.compile import SNAPSHOT
from blockd.settings.source import Kept

#: Generations that stay on disk, the one in force among them.
KEPT = 3
CURRENT = "current"
#: Digest of inputs whose losses somebody accepted, while only a restart could take them in.
ACCEPTED = "accepted"


class Generations:
    """One directory, written by one daemon."""

    def __init__(self, state: Path) -> None:
        """Make the directory if need be, and take it. OSError when it cannot be, BlockingIOError when it is taken."""
        self._root = state / "generations"
        self._current = state / CURRENT
        self._root.mkdir(parents=True, exist_ok=True, mode=0o750)
        # Two daemons that prune and replace each other's generations would leave neither a whole one.
        self._lock = (state / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise
        for unfinished in self._root.glob("*.new"):
            shutil.rmtree(unfinished, ignore_errors=True)

    def new(self) -> Path:
        """Name a directory for the next generation; nothing is there yet."""
        self._root.mkdir(parents=True, exist_ok=True, mode=0o750)
        numbers = [int(path.name) for path in self._root.iterdir() if path.name.isdigit()]
        return self._root / f"{max(numbers, default=0) + 1:08}"

    def current(self, config: Path) -> Path | None:
        """Give the accepted generation, if there is one and it was made of this config file."""
        try:
            generation = self._current.resolve(strict=True)
            kept = Kept(generation)
        except (OSError, ValueError, KeyError):
            return None
        is_ours = kept.config == config and (generation / SNAPSHOT).is_file()
        return generation if is_ours else None

    def accept(self, generation: Path) -> None:
        """Make a generation the one that the next start uses, and forget the oldest."""
        link = self._current.with_name(CURRENT + ".new")
        link.unlink(missing_ok=True)
        link.symlink_to(generation.relative_to(self._current.parent))
        os.replace(link, self._current)
        _sync(self._current.parent)
        others = sorted(path for path in self._root.iterdir() if path.name.isdigit() and path != generation)
        for old in others[: max(0, len(others) - KEPT + 1)]:
            shutil.rmtree(old, ignore_errors=True)

    def remember_accepted(self, digest: str) -> None:
        """Note that inputs of this digest may lose as many rules as they do, for the next start."""
        (self._current.parent / ACCEPTED).write_text(digest)

    def is_accepted(self, digest: str) -> bool:
        """Say whether that was noted."""
        try:
            return (self._current.parent / ACCEPTED).read_text() == digest
        except OSError:
            return False

    def reject(self, generation: Path) -> None:
        """Forget a generation that was not accepted."""
        shutil.rmtree(generation, ignore_errors=True)
        # A compile that was killed cleans nothing up.
        for unfinished in generation.parent.glob(f"{generation.name}.*.new"):
            shutil.rmtree(unfinished, ignore_errors=True)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The state directory: generations of snapshot and inputs, the accepted one behind a link, a few older ones kept."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from blockd.policy.compile import SNAPSHOT
from blockd.problems import Problem
from blockd.settings.source import MANIFEST, Kept

#: Generations that stay on disk, the one in force among them.
KEPT = 3
CURRENT = "current"
#: Digest of inputs whose losses somebody accepted, while only a restart could take them in.
#: The highest number that was in force.
HIGHEST = "highest"
ACCEPTED = "accepted"
#: The last candidate that the gate refused: what it was made of, and why.
STAGED = "staged"
REFUSED = "refused.json"
#: There when somebody went back to an older generation, which then holds until somebody reloads.
HELD = "held"


class HeldError(BlockingIOError):
    """Another process has the directory; its text names the process."""


class Generations:
    """One directory, written by one daemon."""

    def __init__(self, state: Path) -> None:
        """Make the directory if need be, and take it. OSError when it cannot be, HeldError when it is taken."""
        #: The state directory.
        self.root = state
        self._generations = state / "generations"
        self._current = state / CURRENT
        state.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._generations.mkdir(exist_ok=True, mode=0o750)
        # Two daemons that prune and replace each other's generations would leave neither a whole one.
        self._lock = _lock(state / "lock")
        for unfinished in self._generations.glob("*.new"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if self._current.exists():
            # Whole, and never accepted, since the daemon was killed in between: nobody may go back to these.
            newest = self._current.resolve().name
            for orphan in self._generations.iterdir():
                if _is_number(orphan.name) and orphan.name > newest:
                    shutil.rmtree(orphan, ignore_errors=True)

    def new(self) -> Path:
        """Name a directory for the next generation; nothing is there yet."""
        self._generations.mkdir(parents=True, exist_ok=True, mode=0o750)
        numbers = [int(path.name) for path in self._generations.iterdir() if _is_number(path.name)]
        return self._generations / f"{max([*numbers, self._highest()], default=0) + 1:08}"

    def _highest(self) -> int:
        """Give the highest number that was ever in force: after a rollback it must not be another's."""
        try:
            return int((self.root / HIGHEST).read_text())
        except (OSError, ValueError):
            return 0

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
        if int(generation.name) > self._highest():
            new = self.root / f"{HIGHEST}.new"
            new.write_text(generation.name)
            new.replace(self.root / HIGHEST)
        link = self._current.with_name(CURRENT + ".new")
        link.unlink(missing_ok=True)
        link.symlink_to(generation.relative_to(self.root))
        os.replace(link, self._current)
        _sync(self.root)
        others = sorted(path for path in self._generations.iterdir() if _is_number(path.name) and path != generation)
        for old in others[: max(0, len(others) - KEPT + 1)]:
            shutil.rmtree(old, ignore_errors=True)

    def remember_accepted(self, digest: str) -> None:
        """Note that inputs of this digest may lose as many rules as they do, for the next start."""
        (self.root / ACCEPTED).write_text(digest)

    def is_accepted(self, digest: str) -> bool:
        """Say whether that was noted."""
        try:
            return (self.root / ACCEPTED).read_text() == digest
        except OSError:
            return False

    def previous(self, generation: Path) -> Path | None:
        """Give the whole generation before this one, if it is still there."""
        before = sorted(
            path for path in self._generations.iterdir() if _is_number(path.name) and path.name < generation.name
        )
        return before[-1] if before else None

    @property
    def is_held(self) -> bool:
        """Whether somebody went back, and nobody reloaded since."""
        return (self.root / HELD).exists()

    def hold(self, is_held: bool) -> None:
        """Note that the accepted generation stays until somebody reloads, or that it need not."""
        if is_held:
            (self.root / HELD).touch()
        else:
            (self.root / HELD).unlink(missing_ok=True)

    def stage(self, generation: Path, problems: list[Problem]) -> None:
        """Keep a candidate that the gate refused, and why, for people to look at; the one before it is forgotten."""
        staged = self.root / STAGED
        shutil.rmtree(staged, ignore_errors=True)
        try:
            # One that could not even be compiled left nothing but its reasons.
            generation.mkdir(mode=0o750, parents=True, exist_ok=True)
            (generation / REFUSED).write_text(json.dumps([problem.as_json() for problem in problems]))
            generation.rename(staged)
        except OSError:
            # A full disk must not keep the refusal from being one.
            self.reject(generation)

    def unstage(self) -> None:
        """Forget the candidate that was refused: another was taken in."""
        shutil.rmtree(self.root / STAGED, ignore_errors=True)

    def staged(self) -> list[Problem]:
        """Say why the last candidate was refused, when one is staged."""
        try:
            items = json.loads((self.root / STAGED / REFUSED).read_text())
        except (OSError, ValueError, RecursionError):
            return []
        return [_problem(item) for item in items] if isinstance(items, list) else []

    def staged_digest(self) -> str | None:
        """Tell what the last refused candidate was made of; None where there is none that could be taken in."""
        try:
            return str(json.loads((self.root / STAGED / MANIFEST).read_text())["digest"])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None

    def reject(self, generation: Path) -> None:
        """Forget a generation that was not accepted."""
        shutil.rmtree(generation, ignore_errors=True)
        # A compile that was killed cleans nothing up.
        for unfinished in generation.parent.glob(f"{generation.name}.*.new"):
            shutil.rmtree(unfinished, ignore_errors=True)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _problem(item: Any) -> Problem:
    """Read a problem as it was kept; one that was not written by blockd counts, and says so."""
    kinds = {"file": str, "line": int, "key": str, "text": str}
    if isinstance(item, dict) and {key: type(value) for key, value in item.items()} == kinds:
        return Problem(**item)
    return Problem(REFUSED, 0, "", "a reason that cannot be read")


def _lock(file: Path) -> int:
    """Lock a file that nobody else can open: whoever can read one can lock it. The lock ends with this process.

    Children do not keep it: programs that they run do not get the descriptor.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(file, flags, 0o600)
    try:
        # One of an older version may be open to others.
        os.fchmod(descriptor, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError as error:
        text = f"{_holder(descriptor)} holds {file}; end that process"
        os.close(descriptor)
        raise HeldError(error.errno, text) from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _holder(descriptor: int) -> str:
    """Name the process that holds a lock: by the kernel's word, else by what the process wrote into the file."""
    found = os.fstat(descriptor)
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    pid = ""
    with suppress(OSError):
        rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        pid = next((row[4] for row in rows if len(row) > 5 and row[1] == "FLOCK" and row[5] == place), "")
    # The kernel gives 0 or -1 for a process of another namespace.
    if not pid.isdigit() or pid == "0":
        pid = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
    if not pid.isdigit():
        return "a process that cannot be named"
    try:
        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"process {pid}"


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

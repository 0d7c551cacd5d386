"""One build of the package at a time: they share cargo's target directory."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = Path(__file__).parents[2] / "build" / "tests.lock"


@contextmanager
def one_build() -> Iterator[None]:
    """Wait until no other test process builds."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

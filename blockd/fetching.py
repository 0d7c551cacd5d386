"""One fetch of one list, from asking to what is in use; the daemon runs this module as a process.

What a stranger's server sends is unpacked, parsed and judged here, where it cannot hold or harm whoever answers.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import NoReturn, cast

from blockd.fastpath import _native, end_with_parent, read_list
from blockd.lists.gate import refusals, samples
from blockd.lists.remote import (
    ARRIVED,
    REFUSED,
    ROLLED_BACK,
    FetchError,
    State,
    Task,
    put_aside,
    read_state,
    read_task,
    sha256,
    write_state,
)
from blockd.settings.records import record_data
from blockd.settings.values import to_ascii

#: Seconds between two lines that say how far it is.
PROGRESS_INTERVAL = 0.5
#: Address space of a fetch, and of it for each octet that a list may have: a zone's records are objects meanwhile.
MEMORY_OCTETS, MEMORY_FACTOR = 1 << 30, 64


def run(task: Task, now: float) -> State:
    """Fetch, judge, and have what passes wait for a reload; give what is known now, which is on the disk as well."""
    remote = task.remote
    before = read_state(remote.path)
    tried = replace(before, url=remote.url, tried=now, result="failed", failures=before.failures + 1)
    try:
        # What one that was killed left is half of something.
        remote.candidate.unlink(missing_ok=True)
        learned = _fetch(task, before)
        # What came is put in its place whole, however long that takes.
        signal.setitimer(signal.ITIMER_REAL, 0)
        learned = replace(learned, tried=now, failures=0)
        if remote.candidate.exists():
            after = _judged(task, learned, remote.candidate)
        elif remote.refused.exists():
            # Nothing newer: it is judged again, for somebody may have changed by what.
            after = _judged(task, learned, remote.refused)
        else:
            # What waits for a reload is what the server has, and what is in use is not.
            confirmed = learned.confirmed if remote.arrived.exists() else now
            after = replace(learned, result="unchanged", reason=None, confirmed=confirmed)
    except FetchError as error:
        after = replace(tried, reason=str(error))
    except MemoryError:
        after = replace(tried, reason="it takes more memory than a list of largest_mb may")
    except OSError as error:
        text = f"{error.filename or remote.path}: {error.strerror or error}"
        after = replace(tried, reason=text)
    with suppress(OSError):
        # A disk that is full now may have room when there is something new.
        write_state(remote.path, after)
    return after


def _fetch(task: Task, before: State) -> State:
    """Ask the source, whatever it is; what each takes is loaded when it is wanted."""
    if task.remote.zone is not None:
        from blockd.lists.transfers import fetch_zone

        return fetch_zone(task.remote, before, _progress())
    from blockd.lists.sources import fetch

    return fetch(task.remote, before, _progress())


def _judged(task: Task, learned: State, file: Path) -> State:
    """Have what lies there wait for a reload, or put it aside with what speaks against it."""
    remote = task.remote
    native_list = cast("_native.List", {**task.as_read, "file": str(file)})
    try:
        report = read_list(native_list, task.guarded, to_ascii, record_data)
    except (OSError, ValueError) as error:
        file.unlink()
        raise FetchError(f"it cannot be read: {error}") from None
    lines = {key: samples(report[key]) for key in ("samples", "refused_samples")}
    judged = {**report, **lines, "app": remote.app, "file": str(remote.path)}
    known = None if learned.kept is None else {"lists": [{**judged, "kept": learned.kept}]}
    how = f"blockd lists accept {remote.app}"
    against = refusals(known, {"lists": [judged]}, task.limits, str(remote.path), how)
    is_abandoned = learned.abandoned is not None and sha256(file) == learned.abandoned
    if against or is_abandoned:
        file.replace(remote.refused)
        reason = f"{ROLLED_BACK}; if that is meant: {how}"
        if against:
            first = against[0]
            reason = f"line {first.line}: {first.text}" if first.line else first.text
        return replace(learned, result="refused", reason=reason, known_of=REFUSED)
    put_aside(remote, file)
    return replace(
        learned, result="new", reason=None, arrived=report["kept"], arrived_at=learned.tried, known_of=ARRIVED
    )


def _progress() -> Callable[[int, int | None], None]:
    last = 0.0

    def tell(octets: int, whole: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_INTERVAL:
            last = now
            print(json.dumps({"octets": octets, "of": whole}), flush=True)

    return tell


def main(words: list[str]) -> int:
    """Run one for a daemon: its process ID; the task comes by stdin. Prints progress, and what is known in the end."""
    if not end_with_parent(int(words[0])):
        return 1
    os.umask(0o027)
    task = read_task(sys.stdin.read())
    # Whatever a server makes of it, this process does not take the machine's memory: what does not fit is a failure.
    most = MEMORY_OCTETS + MEMORY_FACTOR * task.remote.largest_octets
    resource.setrlimit(resource.RLIMIT_AS, (most, most))

    def give_up(*_: object) -> NoReturn:
        raise FetchError(f"it took longer than {task.remote.patience:g} s")

    # One clock for name lookup, handshakes, headers that trickle and a body that does.
    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, task.remote.patience)
    state = run(task, time.time())
    print(json.dumps(asdict(state)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

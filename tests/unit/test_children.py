"""Children have deadlines that hold when they are stopped (SIGSTOP); a failure that repeats is logged with a count."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockd import compiler, fetches, transfers
from blockd.compiler import Compiler
from blockd.fetches import Fetches
from blockd.guard import Guard
from blockd.lists.gate import Limits
from blockd.lists.remote import Remote, Task
from blockd.observe.repeated import FIRST_SECONDS, TEXTS, RepeatedFailure
from blockd.transfers import Transfers
from tests.support.daemon import free_port


def stopped(word: str) -> int:
    """Stop the child of this process whose command line has a word, as soon as it is there."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for children in Path("/proc/self/task").glob("*/children"):
            for child in children.read_text().split():
                with contextlib.suppress(OSError):
                    if word in Path(f"/proc/{child}/cmdline").read_text():
                        os.kill(int(child), signal.SIGSTOP)
                        return int(child)
        time.sleep(0.005)
    raise AssertionError(f"no child is {word}")


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Call it in a thread; what it gives is put into the list."""
    given: list[Any] = []
    thread = threading.Thread(target=lambda: given.append(call()))
    thread.start()
    return thread, given


def test_a_fetch_that_is_stopped_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's own clock stands still; the daemon's does not, and says how long it waited."""
    monkeypatch.setattr(fetches, "JUDGE_SECONDS", 0.5)
    remote = Remote("a", "https://127.0.0.1:1/list", tmp_path / "list", None, 1 << 20, 1.0)
    native = {"format": "auto", "is_hole": False, "public_suffix": False}
    task = Task(remote, native, [], Limits(0.5, 2.0, 0.2), 3600.0)
    thread, given = in_thread(lambda: Fetches(time.time).run(task))
    stopped("blockd.fetching")
    thread.join(10)
    assert given[0].result == "failed"
    assert "did not end within 1.5 s" in given[0].reason


def test_a_compile_that_is_stopped_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at its deadline, and refused with a reason."""
    monkeypatch.setattr(compiler, "PATIENCE", 1.0)
    one = Compiler()
    one.gives_way = True
    thread, given = in_thread(lambda: one.run(tmp_path / "blockd.yaml", tmp_path / "output"))
    stopped("blockd.compiling")
    thread.join(10)
    assert "the compile did not end within 1.0 s" in given[0][0].text


def test_transfers_go_on_after_their_process_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that says nothing is replaced, also while more is sent to it than its pipe takes."""
    monkeypatch.setattr(transfers, "SILENCE_SECONDS", 7.0)
    monkeypatch.setattr(transfers, "PAUSE", 0.1)
    one = Transfers([("127.0.0.1", free_port())], tmp_path, lambda zone: None, Guard())
    one.start()
    try:
        first = stopped("blockd.transferring")
        began = time.monotonic()
        for _ in range(5):
            one.publish(tmp_path, tmp_path, [("zone", "x" * 100_000, None)])
        assert time.monotonic() - began < 1, "nobody waits for it"
        deadline = time.monotonic() + 20
        while Path(f"/proc/{first}").exists() and time.monotonic() < deadline:
            one.look()
            time.sleep(0.1)
        second = stopped("blockd.transferring")
        assert second != first
    finally:
        began = time.monotonic()
        one.stop()
        while subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "transferring"], check=False).returncode == 0:
            assert time.monotonic() - began < 5
            time.sleep(0.05)


def test_a_failure_that_repeats_is_logged_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    """The first at once, others at growing intervals; texts that never repeat are bounded; one line when it works."""
    caplog.set_level(logging.INFO)
    now = 0.0
    failure = RepeatedFailure(lambda: now)
    for at in range(4 * 3_600):
        now = float(at)
        failure.failed("the disk is full" if at % 2 else "the disk is read-only")
    assert [record.getMessage() for record in caplog.records][:2] == ["the disk is read-only", "the disk is full"]
    assert 10 < len(caplog.records) < 20
    assert caplog.records[2].getMessage() == f"the disk is read-only; {int(FIRST_SECONDS) // 2} more times"
    failure.worked("the disk works again")
    failure.worked("the disk works again")
    assert [record.getMessage() for record in caplog.records].count("the disk works again") == 1
    caplog.clear()
    for at in range(3_600):
        now += 1.0
        failure.failed("it comes") if at % 2 else failure.worked("and it goes")
    flapping = [record.getMessage() for record in caplog.records]
    assert flapping[:3] == ["it comes", "and it goes", "it comes; 30 more times"]
    assert len(flapping) < 20
    caplog.clear()
    now += FIRST_SECONDS + 1
    failure.worked("")
    now += FIRST_SECONDS + 1
    for at in range(1_000):
        failure.failed(f"port {at} is refused")
    assert len(caplog.records) == TEXTS

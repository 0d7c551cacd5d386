"""Attacks on what surrounds the answers: the log's reader, the end of the daemon, peers, descriptors and files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import warm
from tests.support.daemon import BLOCKD, Blockd
from tests.support.questions import CORPORATE, PERSONAL, ask, rcode
from tests.support.upstream import Upstream

row = pytest.mark.row
#: Seconds from SIGTERM to the end, whatever hangs.
STOP_SECONDS = 5.0


def wait_until_ready(blockd: Blockd) -> None:
    """Wait by its admin address, for its log may lead nowhere."""
    assert blockd.process is not None
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert blockd.process.poll() is None
        with contextlib.suppress(OSError):
            blockd.http("/metrics")
            return
        time.sleep(0.02)
    raise AssertionError("the daemon did not start")


def terminate(blockd: Blockd) -> float:
    """Send SIGTERM; give the seconds until it ended with exit code 0."""
    assert blockd.process is not None
    began = time.monotonic()
    blockd.process.send_signal(signal.SIGTERM)
    try:
        code = blockd.process.wait(30)
    finally:
        with contextlib.suppress(OSError):
            blockd.process.kill()
        blockd.process = None
    assert code == 0
    return time.monotonic() - began


@contextlib.contextmanager
def log_that_leads_nowhere(kind: str, blockd: Blockd) -> Iterator[None]:
    """Start a daemon with a stderr that nobody can write to."""
    words = ["serve", "--config", str(blockd.file)]
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    if kind == "closed":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *BLOCKD, *words]
        blockd.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, text=True)
    else:
        if kind == "stalls":
            os.write(writing, b"x" * 4096)
        elif kind == "goes away":
            os.close(reading)
            reading = -1
        with open("/dev/full", "w") if kind == "full" else os.fdopen(os.dup(writing), "w") as log:
            blockd.process = warm.start(words, log)
    try:
        wait_until_ready(blockd)
        yield
    finally:
        if blockd.process is not None:
            blockd.process.kill()
            blockd.process.wait()
        for descriptor in {reading, writing} - {-1}:
            os.close(descriptor)


@row("log-reader")
@pytest.mark.parametrize("kind", ["closed", "stalls", "goes away", "full"])
def test_a_log_that_cannot_be_written_changes_nothing_else(kind: str, tmp_path: Path, upstream: Upstream) -> None:
    """UDP, TCP, the admin address, commands, reloads, a refused reload, SIGHUP and SIGTERM go on; lines are counted."""
    upstream.records["plain.example"] = ["plain.example. 300 IN A 192.0.2.1"]
    blockd = Blockd(tmp_path, [upstream.address])
    with log_that_leads_nowhere(kind, blockd):
        for at in range(30):
            assert rcode(ask(blockd, f"{at}.tiktok.com", client=CORPORATE, tcp=at % 2 == 1)) == "NXDOMAIN"
        assert rcode(ask(blockd, "plain.example", client=PERSONAL)) == "NOERROR"
        assert blockd.reload().returncode == 0
        good = blockd.file.read_text()
        blockd.file.write_text("nonsense: [")
        assert blockd.run("reload").returncode == 1
        blockd.file.write_text(good)
        before = blockd.metric("blockd_config_reloads_total")
        blockd.hangup()
        deadline = time.monotonic() + 10
        while blockd.metric("blockd_config_reloads_total") == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert blockd.run("status").returncode == 0
        assert blockd.run("explain", "plain.example", "--client", PERSONAL).returncode == 0
        assert rcode(ask(blockd, "www.tiktok.com", client=CORPORATE, tcp=True)) == "NXDOMAIN"
        if kind != "stalls":
            assert blockd.metric("blockd_log_lines_dropped_total") > 5
        assert terminate(blockd) < STOP_SECONDS

"""`make run` as an operator runs it: it builds nothing the second time, and Ctrl-C ends it cleanly."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.daemon import Blockd
from tests.support.questions import CORPORATE, ask, rcode
from tests.support.upstream import Upstream

ROOT = Path(__file__).parents[2]


def test_a_second_start_builds_nothing() -> None:
    """With everything built, make runs the daemon and not pip or cargo."""
    done = subprocess.run(["make", "-n", "run"], capture_output=True, text=True, check=True, cwd=ROOT)
    commands = [line for line in done.stdout.splitlines() if "pip install" in line or "venv .venv" in line]
    assert not commands, done.stdout
    assert "blockd serve --config config/blockd.yaml" in done.stdout


def test_ctrl_c_ends_make_run_cleanly(tmp_path: Path, upstream: Upstream) -> None:
    """SIGINT to the terminal's process group: the daemon says that it stopped, and nothing is left."""
    blockd = Blockd(tmp_path, [upstream.address])
    log = tmp_path / "make.log"
    with log.open("w") as file:
        make = subprocess.Popen(
            ["make", "run", f"CONFIG={blockd.file}"], cwd=ROOT, stdout=file, stderr=file, start_new_session=True
        )
    deadline = time.monotonic() + 60
    while "metrics on" not in log.read_text():
        assert make.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    assert rcode(ask(blockd, "tiktok.com", client=CORPORATE)) == "NXDOMAIN"
    os.killpg(make.pid, signal.SIGINT)
    # Make ends itself by the signal that it got, once the daemon is gone.
    assert make.wait(10) in (0, -signal.SIGINT), log.read_text()
    assert "INFO stopped" in log.read_text()
    assert "Error" not in log.read_text()
    with pytest.raises(ProcessLookupError):
        os.killpg(make.pid, 0)
    assert not (tmp_path / "control.sock").exists()

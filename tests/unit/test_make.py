"""`make run` as an operator runs it: it builds nothing the second time, and Ctrl-C ends it cleanly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.daemon import Blockd
from tests.support.questions import CORPORATE, ask, rcode
from tests.support.upstream import Upstream

ROOT = Path(__file__).parents[2]
#: What the recipes run before anything is installed.
TOOLS = ("apt-get", "bash", "cut", "find", "head", "id", "make", "sed", "sh", "sort")
#: In a mount namespace: apt's lists are an empty directory whose lock this process holds.
WITH_LOCK = """
import fcntl, pathlib, subprocess, sys
lists = pathlib.Path("/var/lib/apt/lists")
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", lists], check=True)
with (lists / "lock").open("w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    sys.exit(subprocess.run(["make", "toolchain"], env={"PATH": sys.argv[1]}).returncode)
"""


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


def test_a_step_that_fails_stops_with_its_reason(tmp_path: Path) -> None:
    """Without cargo, and with apt's lock held: apt says so, and nothing goes on to call a cargo that is not there."""
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None, tool
        (tmp_path / tool).symlink_to(found)
    words = ["unshare", "--mount", sys.executable, "-c", WITH_LOCK, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode != 0
    assert "Could not get lock" in done.stderr
    assert "apt-get could not install cargo-web rustc-web: its message is above" in done.stderr
    assert "command not found" not in done.stderr

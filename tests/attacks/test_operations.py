"""Attacks on what surrounds the answers: the log's reader, the end of the daemon, peers, descriptors and files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.support import warm
from tests.support.daemon import BLOCKD, Blockd, free_port
from tests.support.people import ALICE, MALLORY, ask_as, socket_for_all
from tests.support.questions import CORPORATE, PERSONAL, ask, message, rcode
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


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Give a listener that accepts by the kernel's hand, and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening


def children(blockd: Blockd, word: str) -> list[int]:
    """Find the daemon's children whose command line has a word."""
    assert blockd.process is not None
    found = []
    for task in Path(f"/proc/{blockd.process.pid}/task").glob("*/children"):
        for child in task.read_text().split():
            with contextlib.suppress(OSError):
                if word in Path(f"/proc/{child}/cmdline").read_text():
                    found.append(int(child))
    return found


def stop_child(blockd: Blockd, word: str) -> int:
    """Send SIGSTOP to a child as soon as it is there."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if found := children(blockd, word):
            os.kill(found[0], signal.SIGSTOP)
            return found[0]
        time.sleep(0.02)
    raise AssertionError(f"no child is {word}")


def answers_until_the_end(blockd: Blockd, seen: list[float]) -> threading.Thread:
    """Ask by UDP until nobody answers any more; note when each answer came."""

    def ask_on() -> None:
        with contextlib.suppress(Exception):
            while True:
                ask(blockd, "www.tiktok.com", client=CORPORATE, timeout=0.5)
                seen.append(time.monotonic())
                time.sleep(0.02)

    thread = threading.Thread(target=ask_on)
    thread.start()
    return thread


@row("stop-hangs")
def test_it_ends_in_time_while_a_database_hangs(tmp_path: Path, upstream: Upstream, silent: socket.socket) -> None:
    """It accepts and never answers: queries are answered for as long as the counts are tried to be kept."""
    url = f"postgresql+psycopg://blockd@127.0.0.1:{silent.getsockname()[1]}/blockd"
    blockd = Blockd(tmp_path, [upstream.address], exemptions={"database": url, "teams": {"soc": ["nobody"]}})
    blockd.start()
    ask(blockd, "www.tiktok.com", client=CORPORATE)
    seen: list[float] = []
    asking = answers_until_the_end(blockd, seen)
    began = time.monotonic()
    assert terminate(blockd) < STOP_SECONDS
    asking.join()
    assert max(seen) - began > 1, "it answers while it waits"
    assert "STOPPING" not in blockd.log.read_text()
    assert "Traceback" not in blockd.log.read_text()


@row("stop-hangs")
def test_it_ends_in_time_while_the_reactor_waits_for_a_disk(serve: Serve, upstream: Upstream) -> None:
    """A file of the state directory that never opens holds the reactor itself: the clock of the stop runs beside it."""
    blockd = serve([upstream.address])
    staged = blockd.directory / "state" / "staged"
    staged.mkdir()
    os.mkfifo(staged / "refused.json")
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{blockd.admin}/readyz", timeout=0.5)
    assert rcode(ask(blockd, "www.tiktok.com", client=CORPORATE)) == "NXDOMAIN"
    assert terminate(blockd) < STOP_SECONDS + 0.5
    assert "the stop is not complete" in blockd.log.read_text()


@row("stop-hangs")
def test_it_ends_in_time_while_peers_and_children_hang(serve: Serve, upstream: Upstream, tmp_path: Path) -> None:
    """Peers that never read, by TCP, HTTP, commands and as a firewall; children that are stopped; files that never end.

    A second SIGTERM changes nothing.
    """
    fifo = tmp_path / "leases.csv"
    os.mkfifo(fifo)
    blockd = serve(
        [upstream.address],
        transfer={"listen": [f"127.0.0.1:{free_port()}"]},
        egress={"enabled": True, "socket": "egress.sock"},
        devices={"leases": [{"file": str(fifo), "format": "kea"}]},
    )
    stop_child(blockd, "blockd.transferring")
    inventory = blockd.directory / "devices.csv"
    os.mkfifo(inventory)
    blockd.values["groups"]["corporate"]["inventory"] = [{"file": "devices.csv"}]
    blockd.write()
    with contextlib.ExitStack() as held:
        for path in ("egress.sock", "control.sock"):
            one = held.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(str(blockd.directory / path))
            one.sendall(b'{"command": "status"}\n' if path == "control.sock" else b"")
        for port, request in ((blockd.port, message("www.tiktok.com").to_wire()), (blockd.admin, b"")):
            one = held.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            one.connect(("127.0.0.1", port))
            one.setblocking(False)
            page = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            whole = len(request).to_bytes(2, "big") + request if request else page
            with contextlib.suppress(OSError):
                for _ in range(200):
                    one.sendall(whole)
        blockd.hangup()
        stop_child(blockd, "blockd.compiling")
        seen: list[float] = []
        asking = answers_until_the_end(blockd, seen)
        assert blockd.process is not None
        blockd.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        assert terminate(blockd) < STOP_SECONDS
        asking.join()
    assert seen
    assert "Traceback" not in blockd.log.read_text()


@row("stop-hangs")
def test_a_start_that_hangs_ends_at_once(tmp_path: Path, upstream: Upstream, silent: socket.socket) -> None:
    """SIGTERM while it waits for a file of the state directory, and while it waits for a database."""
    url = f"postgresql+psycopg://blockd@127.0.0.1:{silent.getsockname()[1]}/blockd"
    database = {"database": url, "teams": {"soc": ["nobody"]}}
    for number, sections in enumerate(({}, {"exemptions": database})):
        directory = tmp_path / str(number)
        (directory / "state").mkdir(parents=True)
        if not sections:
            os.mkfifo(directory / "state" / "highest")
        blockd = Blockd(directory, [upstream.address], **sections)
        with blockd.log.open("w") as log:
            process = warm.start(["serve", "--config", str(blockd.file)], log)
        time.sleep(1)
        assert process.poll() is None
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (0, -signal.SIGTERM)
        assert time.monotonic() - began < STOP_SECONDS


@row("control-socket")
def test_a_user_who_crowds_the_control_socket_keeps_no_other_out(upstream: Upstream, tmp_path: Path) -> None:
    """A user has four connections, each with one clock for a command; what goes on counts after a hang-up, too."""
    with socket_for_all() as place:
        exemptions = {"teams": {"cyber": [ALICE]}}
        with Blockd(tmp_path, [upstream.address], admin={"socket": str(place)}, exemptions=exemptions) as blockd:
            child = os.fork()
            if child == 0:
                os.setuid(pwd.getpwnam(MALLORY).pw_uid)
                os._exit(crowd(str(place)))
            ended = (0, 0)
            while ended == (0, 0):
                assert blockd.run("status").returncode == 0
                assert "there is no exemption" in ask_as(ALICE, place, "approve", exemption="E1")["error"]
                ended = os.waitpid(child, os.WNOHANG)
            assert ended[1] == 0
            assert blockd.run("status").returncode == 0


def crowd(path: str) -> int:
    """Hold what one user may hold, a byte at a time, then hang up on commands; give 0 if all of it was bounded."""
    held = []
    for _ in range(60):
        one = socket.socket(socket.AF_UNIX)
        one.connect(path)
        one.sendall(b"{")
        held.append(one)
    began, is_open = time.monotonic(), {one: True for one in held}
    at_most = 60
    while any(is_open.values()) and time.monotonic() - began < 10:
        for one in [one for one in held if is_open[one]]:
            try:
                one.sendall(b" ")
                while one.recv(4096, socket.MSG_DONTWAIT):
                    pass
                is_open[one] = False
            except BlockingIOError:
                continue
            except OSError:
                is_open[one] = False
        time.sleep(0.2)
        if time.monotonic() - began > 1:
            at_most = min(at_most, sum(is_open.values()))
    if at_most > 4 or any(is_open.values()):
        return 1
    for _ in range(200):
        one = socket.socket(socket.AF_UNIX)
        one.connect(path)
        with contextlib.suppress(OSError):
            one.sendall(b'{"command": "exempt", "do": "approve", "exemption": "E1"}\n')
        one.close()
    return 0

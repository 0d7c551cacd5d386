"""What the daemon tells a supervisor: ready, reloading, alive, stopping; and what it does not say when it is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blockd.daemon import Daemon
from blockd.observe.health import AliveCheck
from blockd.problems import StartError
from blockd.supervisor import Supervisor
from blockd.transport.listen import Inherited
from tests.conftest import Serve
from tests.support.daemon import BLOCKD, Blockd
from tests.support.questions import CORPORATE, PERSONAL, addresses, ask, rcode
from tests.support.upstream import Upstream


class Listener:
    """The supervisor's end of the notify socket."""

    def __init__(self, directory: Path) -> None:
        """Bind it."""
        self.path = str(directory / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(30)

    def until(self, wanted: str) -> list[str]:
        """Give the lines that came, up to one that begins so."""
        lines: list[str] = []
        while not any(line.startswith(wanted) for line in lines):
            lines += self._socket.recv(4096).decode().splitlines()
        return lines

    def __enter__(self) -> Listener:
        """Give itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self._socket.close()


def test_a_supervisor_hears_how_it_goes(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY with what is in force, RELOADING and READY around a reload, WATCHDOG each second, STOPPING at the end."""
    with Listener(tmp_path) as listener:
        monkeypatch.setenv("NOTIFY_SOCKET", listener.path)
        monkeypatch.setenv("WATCHDOG_USEC", "20000000")
        blockd = Blockd(tmp_path, [upstream.address])
        blockd.start()
        try:
            ready = listener.until("READY=1")
            assert ready[-1] == "STATUS=rules generation 1, views generation 1; the config is in force"
            listener.until("WATCHDOG=1")
            blockd.values["policies"]["personal"] = {"block": ["tiktok"]}
            assert blockd.reload().returncode == 0
            lines = listener.until("READY=1")
            assert any(line.startswith("MONOTONIC_USEC=") for line in lines)
            assert lines.index("RELOADING=1") < lines.index("READY=1")
            assert "views generation 2" in lines[-1]
        finally:
            blockd.stop()
        listener.until("STOPPING=1")


def test_the_watchdog_is_not_fed_for_a_thread_that_stands_still() -> None:
    """One of two serve threads is enough."""
    told: list[str] = []
    beats = [1, 1]
    daemon: Any = SimpleNamespace(
        _alive=AliveCheck(lambda: list(beats)),
        _supervisor=SimpleNamespace(alive=lambda: told.append("alive")),
        _routes=SimpleNamespace(look=lambda now: {}),
    )
    Daemon._look(daemon)
    beats = [2, 2]
    Daemon._look(daemon)
    assert told == ["alive"] * 2
    beats = [3, 2]
    Daemon._look(daemon)
    assert told == ["alive"] * 2


def test_only_what_was_meant_for_this_process_is_taken() -> None:
    """LISTEN_PID of another process, or no number, is nobody's; what is taken is taken out."""
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "3", "NOTIFY_SOCKET": "/nonexistent", "WATCHDOG_USEC": "x"}
    supervisor = Supervisor(environment)
    assert (supervisor.sockets, supervisor.has_watchdog, environment) == ([], False, {})
    supervisor.ready("nobody listens, and that is no error")


def test_sockets_of_no_use_are_refused() -> None:
    """One that is no network socket, and one of an address that the config does not name."""
    with socket.socket(socket.AF_UNIX) as one, pytest.raises(StartError, match="neither IPv4 nor IPv6"):
        Inherited([one])
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        with pytest.raises(StartError, match="does not listen"):
            Inherited([one])
    for count in ("²", "x", "99999999", "4000"):
        with pytest.raises(StartError, match=f"LISTEN_FDS={count}|LISTEN_FDS='{count}'"):
            Supervisor({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count})
    with socket.socket(type=socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        with pytest.raises(StartError, match=r"the supervisor opened 127\.0\.0\.1:\d+, which is in neither"):
            Inherited([one]).check([])


#: Puts descriptors where a supervisor puts them, and becomes the daemon.
ACTIVATE = """
import os, sys
places = [os.dup2(int(place), 200 + at) for at, place in enumerate(sys.argv[1].split(","))]
for at, place in enumerate(places):
    os.dup2(place, 3 + at)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("count", [1, 2, 3])
def test_any_number_of_sockets_serves_two_threads(count: int, tmp_path: Path, upstream: Upstream) -> None:
    """One is shared, two are one each, three are served by both; queries that came in between are answered."""
    upstream.records["plain.example"] = ["plain.example. 60 IN A 192.0.2.1"]
    blockd = Blockd(tmp_path, [upstream.address])
    blockd.values["server"]["listen"] = [f"127.0.0.1:{blockd.port}"]
    blockd.write()
    sockets = []
    for _ in range(count):
        one = socket.socket(type=socket.SOCK_DGRAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", blockd.port))
        sockets.append(one)
    # Each of them must be accepted from: the kernel spreads connections over all.
    for _ in range(count):
        stream = socket.socket()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stream.bind(("127.0.0.1", blockd.port))
        stream.listen()
        sockets.append(stream)
    try:
        for _ in range(2):
            asking = [_ask_later(blockd.port) for _ in range(8)]
            places = [one.fileno() for one in sockets]
            activate = [sys.executable, "-c", ACTIVATE, ",".join(map(str, places))]
            with (tmp_path / "log").open("w") as log:
                process = subprocess.Popen(
                    [*activate, *BLOCKD, "serve", "--config", str(blockd.file)],
                    env={**os.environ, "LISTEN_FDS": str(len(sockets))},
                    stderr=log,
                    pass_fds=places,
                )
            try:
                for one in asking:
                    assert one.recv(512)[3] & 15 == 3
                for _ in range(20):
                    assert rcode(ask(blockd, "tiktok.com", client=CORPORATE)) == "NXDOMAIN"
                for _ in range(12):
                    assert addresses(ask(blockd, "plain.example", client=PERSONAL, tcp=True)) == ["192.0.2.1"]
                assert f"{count} sockets of the supervisor" in (tmp_path / "log").read_text()
            finally:
                process.terminate()
                code = process.wait(30)
                for one in asking:
                    one.close()
            # Not in `finally`: what failed first is what is to be seen.
            assert code == 0, (tmp_path / "log").read_text()
    finally:
        for one in sockets:
            one.close()


def _ask_later(port: int) -> socket.socket:
    """Ask before anybody answers."""
    from tests.support.questions import message

    one = socket.socket(type=socket.SOCK_DGRAM)
    # The daemon is yet to start, and the machine may be busy with other tests.
    one.settimeout(60)
    one.bind((CORPORATE, 0))
    one.sendto(message("tiktok.com").to_wire(), ("127.0.0.1", port))
    return one


def test_what_was_taken_is_answered_before_the_end(serve: Serve) -> None:
    """A question that waits for a slow upstream when SIGTERM comes is answered, over UDP and TCP."""
    import threading

    with Upstream({"slow.example": ["slow.example. 60 IN A 192.0.2.1"]}) as upstream:
        upstream.delay = 0.8
        blockd = serve([upstream.address])
        got: dict[bool, list[str]] = {}

        def wait(tcp: bool) -> None:
            got[tcp] = addresses(ask(blockd, "slow.example", client=PERSONAL, tcp=tcp))

        threads = [threading.Thread(target=wait, args=(tcp,)) for tcp in (False, True)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        blockd.stop()
        for thread in threads:
            thread.join()
        assert got == {False: ["192.0.2.1"], True: ["192.0.2.1"]}

"""Attacks on what surrounds the answers: the log's reader, the end of the daemon, peers, descriptors and files."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pwd
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import pytest
import trustme

from blockd.firewall import Firewall, tls
from blockd.generations import Generations
from blockd.problems import StartError
from blockd.transport.listen import UnixPath
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
    if "closed" in kind:
        close = "2>&-" if kind == "closed" else "<&- >&- 2>&-"
        blockd.process = subprocess.Popen(["sh", "-c", f'exec "$@" {close}', "sh", *BLOCKD, *words], text=True)
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
@pytest.mark.parametrize("kind", ["closed", "all closed", "stalls", "goes away", "full"])
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
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(blockd.directory / "control.sock"))
        client.sendall(b'{"command": "lists"}\n')
        time.sleep(0.5)
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
                code = 1
                try:
                    os.setuid(pwd.getpwnam(MALLORY).pw_uid)
                    code = crowd(str(place))
                finally:
                    os._exit(code)
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
    for _ in range(300):
        one = socket.socket(socket.AF_UNIX)
        one.connect(path)
        with contextlib.suppress(OSError):
            one.sendall(b'{"command": "exempt", "do": "approve", "exemption": "E1"}\n')
        one.close()
    return 0


@row("descriptors")
def test_clients_leave_descriptors_to_everybody_else(tmp_path: Path, upstream: Upstream) -> None:
    """With 700 descriptors there are fewer exchange sockets and fewer clients, the log says so, and all goes on."""
    upstream.records["plain.example"] = ["plain.example. 300 IN A 192.0.2.1"]
    limit = ["prlimit", "--nofile=700:700"]
    tcp = {"connections": 4_096, "connections_a_client": 4_096}
    blockd = Blockd(tmp_path, [upstream.address], server={"threads": 2, "tcp": tcp})
    blockd.start(prefix=limit)
    try:
        assert "the limit of open files is 700" in blockd.log.read_text()
        with contextlib.ExitStack() as held:
            for _ in range(900):
                one = held.enter_context(socket.socket())
                one.connect(("127.0.0.1", blockd.port))
            for at in range(50):
                upstream.records[f"{at}.example"] = [f"{at}.example. 300 IN A 192.0.2.1"]
                assert rcode(ask(blockd, f"{at}.example", client=PERSONAL)) == "NOERROR"
            assert blockd.metric("blockd_tcp_connections") < 200
            assert blockd.run("status").returncode == 0
            assert blockd.reload().returncode == 0
            assert rcode(ask(blockd, "plain.example", client=PERSONAL, tcp=True)) == "NOERROR"
    finally:
        blockd.stop()
    few = Blockd(tmp_path, [upstream.address], server={"threads": 2})
    command = ["prlimit", "--nofile=400:400", *BLOCKD, "serve", "--config", str(few.file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert "the limit of open files is 400, which leaves" in ended.stderr
    assert "LimitNOFILE=" in ended.stderr


@row("paths")
@pytest.mark.parametrize("key", ["admin", "egress"])
@pytest.mark.parametrize("kind", ["file", "link", "live", "full", "left"])
def test_a_socket_path_that_is_taken_stays_as_it_is(key: str, kind: str, tmp_path: Path) -> None:
    """A file, a symbolic link and a socket that somebody listens on stay; what a killed daemon left is removed."""
    path, other = tmp_path / "one.sock", tmp_path / "other"
    other.write_text("precious")
    with socket.socket(socket.AF_UNIX) as listening, contextlib.ExitStack() as stack:
        if kind == "file":
            path.write_text("precious")
        elif kind == "link":
            path.symlink_to(other)
        else:
            listening.bind(str(path))
            listening.listen(0)
        if kind == "full":
            for _ in range(2):
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect_ex(str(path))
        if kind == "left":
            listening.close()
            UnixPath(path, f"{key}.socket")
            assert not path.exists()
            return
        before = path.lstat()
        with pytest.raises(StartError, match=rf"^{key}\.socket: .*another path$"):
            UnixPath(path, f"{key}.socket")
        assert path.lstat().st_ino == before.st_ino
        assert other.read_text() == "precious"


@row("paths")
def test_a_daemon_takes_no_file_of_another_one(serve: Serve, upstream: Upstream) -> None:
    """Neither the sockets nor the state directory of one that runs; the error names the process."""
    first = serve([upstream.address], egress={"enabled": True, "socket": "egress.sock"})
    assert first.process is not None
    odd = first.directory / "odd" / "lock"
    odd.mkdir(parents=True)
    for section, values, said in (
        ("admin", {"socket": str(first.directory / "control.sock")}, "admin.socket: .*another daemon listens there"),
        ("egress", {"enabled": True, "socket": str(first.directory / "egress.sock")}, "egress.socket: .*listens there"),
        ("state", {"directory": str(first.directory / "state")}, f"is running with it: process {first.process.pid} "),
        ("state", {"directory": str(odd.parent)}, f"state.directory: {odd}: Is a directory; correct it"),
    ):
        directory = first.directory / f"another-{section}"
        directory.mkdir(exist_ok=True)
        second = Blockd(directory, [upstream.address], **{section: values})
        ended = warm.run(["serve", "--config", str(second.file)])
        assert ended.returncode == 1
        assert re.search(said, ended.stderr), ended.stderr
    assert first.run("status").returncode == 0
    assert (first.directory / "egress.sock").is_socket()
    lock = first.directory / "state" / "lock"
    assert lock.stat().st_mode & 0o777 == 0o600, "who can open it can lock it"


@row("paths")
@pytest.mark.parametrize("kind", ["open to all", "link", "pipe"])
def test_nobody_else_holds_the_lock(kind: str, tmp_path: Path) -> None:
    """A lock that was open to all is no more; a link and a pipe in its place are refused, and block nobody."""
    state = tmp_path / "state"
    state.mkdir()
    if kind == "link":
        (state / "lock").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="symbolic"):
            Generations(state)
        assert not (tmp_path / "elsewhere").exists()
        return
    if kind == "pipe":
        os.mkfifo(state / "lock")
    else:
        (state / "lock").touch(mode=0o644)
    with contextlib.suppress(OSError):
        Generations(state)
    assert (state / "lock").stat().st_mode & 0o077 == 0


def soa(zone: str, source: str, port: int) -> str | None:
    """Ask for a zone's SOA from an address; None when nobody answers."""
    query = dns.message.make_query(zone, "SOA")
    with contextlib.suppress(dns.exception.Timeout):
        return rcode(dns.query.udp(query, "127.0.0.1", 1, port, source))
    return None


@row("transfer-peers")
def test_peers_of_zone_transfers_have_shares(serve: Serve, upstream: Upstream) -> None:
    """One address has its share of connections and datagrams; others are served by any address of theirs meanwhile."""
    port, zone = free_port(), "corporate.rpz.test"
    crowded, other, stranger = "127.0.0.1", ["127.0.0.5:53", "127.0.0.6:53"], "127.0.0.9"
    secondaries = [{"address": f"{crowded}:53", "notify": False}, {"address": other, "notify": False}]
    transfer = {"listen": [f"127.0.0.1:{port}"], "zones": {"corporate": {"zone": zone, "secondaries": secondaries}}}
    blockd = serve([upstream.address], transfer=transfer)
    deadline = time.monotonic() + 20
    while soa(zone, "127.0.0.6", port) != "NOERROR" and time.monotonic() < deadline:
        time.sleep(0.1)
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        held = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), source_address=(crowded, 0)))
            for _ in range(20)
        ]
        for address in ("127.0.0.5", "127.0.0.6"):
            answers = dns.query.xfr("127.0.0.1", zone, port=port, source=address, relativize=False, lifetime=5)
            assert sum(len(message.answer) for message in answers) > 10
        with socket.create_connection(("127.0.0.1", port), source_address=(stranger, 0)) as one:
            one.settimeout(5)
            assert one.recv(1) == b""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
            flood.bind((crowded, 0))
            flood.settimeout(0.3)
            query, answered = dns.message.make_query(zone, "SOA").to_wire(), 0
            for at in range(1_000):
                flood.sendto(query if at % 2 else os.urandom(at % 80), ("127.0.0.1", port))
                if at % 50 == 0:
                    assert soa(zone, "127.0.0.5", port) == "NOERROR"
            with contextlib.suppress(TimeoutError):
                while flood.recv(4096):
                    answered += 1
            assert 50 < answered < 600
        is_open = dict.fromkeys(held, True)
        most = len(held)
        while any(is_open.values()) and time.monotonic() - began < 15:
            for one in [one for one in held if is_open[one]]:
                try:
                    one.send(b"\0")
                    is_open[one] = one.recv(16, socket.MSG_DONTWAIT) != b""
                except BlockingIOError:
                    continue
                except OSError:
                    is_open[one] = False
            most = min(most, sum(is_open.values()) or most)
            time.sleep(0.3)
        assert most <= 8
        assert not any(is_open.values()), "one clock for a message, however it trickles in"
    time.sleep(1.1)
    for reason in ("share", "stranger", "rate", "malformed"):
        assert blockd.metric("blockd_transfers_refused_total", reason=reason) >= 1, reason
    assert f"{stranger} was refused: it is not listed as a secondary or primary" in blockd.log.read_text()


@row("firewall-handshakes")
def test_strangers_keep_no_firewall_out(tmp_path: Path) -> None:
    """Handshakes that never end have a share for each address, and the oldest makes room for a firewall that is one."""
    authority = trustme.CA()
    files = {}
    for name in ("daemon", "gateway"):
        made = authority.issue_cert(f"{name}.example")
        made.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        for pem in made.cert_chain_pems:
            pem.write_to_path(tmp_path / f"{name}.crt", append=True)
        files[name] = (tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    port = free_port()

    async def attack() -> Counter[str]:
        firewall = Firewall(
            lambda serials: None, lambda name, kind: None, lambda source, seconds: True, lambda some: {}
        )
        await firewall.listen_far("127.0.0.1", port, tls(True, *files["daemon"], tmp_path / "ca.pem"))
        context = tls(False, *files["gateway"], tmp_path / "ca.pem")
        context.check_hostname = False
        strangers = []
        for at in range(60):
            source = (f"127.0.0.{20 + at % 10}", 0)
            strangers.append(await asyncio.open_connection("127.0.0.1", port, local_addr=source))
            if at % 3 == 0:
                strangers[-1][1].write(os.urandom(500))
        _, writer = await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, ssl=context), 3)
        for _ in range(100):
            if firewall.peers:
                break
            await asyncio.sleep(0.02)
        assert len(firewall.peers) == 1
        for one in (writer, *(stranger for _, stranger in strangers)):
            one.close()
        firewall.close()
        await asyncio.sleep(0.05)
        return firewall.turned_away

    turned_away = asyncio.run(attack())
    assert turned_away["share"] + turned_away["busy"] + turned_away["certificate"] >= 44
    assert turned_away["busy"] >= 1

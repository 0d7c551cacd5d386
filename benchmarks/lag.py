"""How late Python's event loop is under attack: ``python -m benchmarks.lag [--realtime] [SECONDS] [ATTACK...]``.

Each attack is measured between two quiet times of the same run. `blockd_reactor_lag_seconds` counts every 20 ms, also
through stalls; memory is the resident set at its highest. The site is a large one: 200 groups that met 20 apps each.
With ``--realtime`` (root) the daemon goes before all other processes, so that their share of the lag is not measured.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dns.message

from tests.support.daemon import BLOCKD, Blockd, free_port
from tests.support.upstream import Asked, Reply, Upstream, answer

GROUPS, APPS, NAMES = 200, 20, 200_000
SECONDS = 10.0
HOST = b"Host: 127.0.0.1\r\n\r\n"
BUCKET = re.compile(r'^blockd_reactor_lag_seconds_bucket\{le="(.+)"\} (\S+)$', re.MULTILINE)


class Subject:
    """A daemon whose log goes through a pipe that is read, or not."""

    def __init__(self, directory: Path, upstream: Upstream) -> None:
        """Start it, and have every group meet every app."""
        self.page = free_port()
        networks = {f"g{at}": {"networks": [f"127.1.{at}.1/32"]} for at in range(GROUPS)}
        apps: dict[str, Any] = {f"app{at}": {"suffixes": [f"app{at}.example"]} for at in range(APPS)}
        apps["listed"] = {"lists": [{"file": "names.txt", "format": "domains"}]}
        policies: dict[str, Any] = {group: {"block": sorted(apps)} for group in networks}
        (directory / "apps").mkdir()
        self.names = directory / "apps" / "names.txt"
        self.write_names(0)
        made = Blockd(
            directory,
            [upstream.address],
            apps=apps,
            groups=networks,
            policies=policies,
            server={"client_rate": 100_000, "client_burst": 100_000},
            block_page={"listen": [f"127.0.0.1:{self.page}"]},
            admin={"metrics_max_age": "1s"},
        )
        self.blockd, self.is_read = made, threading.Event()
        self.is_read.set()
        command = [*BLOCKD, "serve", "--config", str(made.file)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if "metrics on" in line:
                break
        threading.Thread(target=self._read, daemon=True).start()
        for group in range(GROUPS):
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.bind((f"127.1.{group}.1", 0))
                for app in range(APPS):
                    query = dns.message.make_query(f"app{app}.example", "A").to_wire()
                    client.sendto(query, ("127.0.0.1", made.port))
                    client.recv(1500)

    def write_names(self, salt: int) -> None:
        """Write another list."""
        self.names.write_text("".join(f"n{at}.l{salt}.example\n" for at in range(NAMES)))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for _ in self.process.stderr:
            self.is_read.wait()

    def counts(self) -> dict[float, float]:
        """Give ticks by upper bound, added up."""
        deadline = time.monotonic() + 30
        # Longer than a page is shared.
        time.sleep(1.1)
        while True:
            try:
                return {float(bound): float(count) for bound, count in BUCKET.findall(self.blockd.http("/metrics"))}
            except OSError:
                # What attacked it is being closed still.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def memory(self) -> float:
        """Give the resident set, MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) / 1024

    def stop(self) -> None:
        """End it."""
        self.is_read.set()
        self.process.terminate()
        self.process.wait(30)


def quantile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """Give a quantile of the ticks between two readings, milliseconds, as Prometheus interpolates it."""
    counts = {bound: after[bound] - before[bound] for bound in sorted(after)}
    rank, lower, below = share * counts[float("inf")], 0.0, 0.0
    for bound, count in counts.items():
        if count >= rank:
            if bound == float("inf"):
                return lower * 1000
            inside = count - below
            return (lower + (bound - lower) * ((rank - below) / inside if inside else 0.0)) * 1000
        lower, below = bound, count
    return lower * 1000


def tcp(port: int) -> socket.socket:
    """Connect."""
    return socket.create_connection(("127.0.0.1", port), timeout=5)


def framed(name: str, kind: str = "A") -> bytes:
    """Make a query as it is sent over TCP."""
    wire = dns.message.make_query(name, kind).to_wire()
    return struct.pack("!H", len(wire)) + wire


def pipelining(subject: Subject, until: float) -> str:
    """Send 40,000 requests to either listener, hundreds on each connection; read what comes."""
    sent = answered = 0
    while time.monotonic() < until:
        for path, port in ((b"/healthz", subject.blockd.admin), (b"/", subject.page)):
            for _ in range(40):
                with contextlib.suppress(OSError), tcp(port) as one:
                    one.sendall(b"GET %s HTTP/1.1\r\n%s" % (path, HOST) * 1_000)
                    sent += 1_000
                    while chunk := one.recv(1 << 16):
                        answered += chunk.count(b"HTTP/1.1 ")
    return f"{sent} requests, {answered} answered"


def idle(subject: Subject, until: float) -> str:
    """Open 1,000 connections to either listener and to DNS, and send nothing."""
    held = []
    for port in (subject.blockd.admin, subject.page, subject.blockd.port):
        for _ in range(1_000):
            with contextlib.suppress(OSError):
                held.append(tcp(port))
    time.sleep(max(0.0, until - time.monotonic()))
    for one in held:
        one.close()
    return f"{len(held)} connections"


def slow_headers(subject: Subject, until: float) -> str:
    """Send requests octet by octet on 300 connections; who is closed comes anew."""
    request = b"GET /metrics HTTP/1.1\r\nX-Slow: " + b"x" * 4_000
    held: list[tuple[socket.socket, int]] = []
    octets = 0
    while time.monotonic() < until:
        while len(held) < 300:
            with contextlib.suppress(OSError):
                held.append((tcp(subject.blockd.admin if len(held) % 2 else subject.page), 0))
        still = []
        for one, at in held:
            try:
                octets += one.send(request[at : at + 1])
                still.append((one, at + 1))
            except OSError:
                one.close()
        held = still
        time.sleep(0.01)
    for one, _ in held:
        one.close()
    return f"{octets} octets"


def scrapes(subject: Subject, until: float) -> str:
    """Fetch /metrics by 16 clients without a pause."""
    fetched: list[int] = []

    def fetch() -> None:
        while time.monotonic() < until:
            with contextlib.suppress(OSError), tcp(subject.blockd.admin) as one:
                one.sendall(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n" + HOST)
                while chunk := one.recv(1 << 18):
                    fetched.append(len(chunk))

    threads = [threading.Thread(target=fetch) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return f"{sum(fetched) >> 20} MB read"


def resets(subject: Subject, until: float) -> str:
    """Reset 200 connections after data, on each listener, again and again."""
    count = 0
    ways = (
        (subject.blockd.port, framed("slow.example")),
        (subject.blockd.admin, b"GET /metrics HTTP/1.1\r\n" + HOST),
        (subject.page, b"GET / HTTP/1.1\r\n" + HOST),
    )
    while time.monotonic() < until:
        for port, data in ways:
            for _ in range(200):
                with contextlib.suppress(OSError), tcp(port) as one:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    one.sendall(data)
                    count += 1
    return f"{count} resets"


def slow_readers(subject: Subject, until: float) -> str:
    """Ask for large answers on 64 connections over TCP, and read nothing."""
    held = []
    for _ in range(64):
        one = tcp(subject.blockd.port)
        one.setblocking(False)
        held.append(one)
    asked = 0
    while time.monotonic() < until:
        for one in held:
            with contextlib.suppress(OSError):
                asked += one.send(framed("big.example", "TXT") * 10)
        time.sleep(0.05)
    for one in held:
        one.close()
    return f"{asked >> 10} KB of queries"


def stalled_log(subject: Subject, until: float) -> str:
    """Write lines of the decisions log to a pipe that nobody reads."""
    subject.is_read.clear()
    count = 0
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        while time.monotonic() < until:
            for _ in range(20):
                name = f"n{count}.l0.example" if count % 2 else f"r{count}.app{count % APPS}.example"
                client.sendto(dns.message.make_query(name, "A").to_wire(), ("127.0.0.1", subject.blockd.port))
                count += 1
            time.sleep(0.01)
    subject.is_read.set()
    return f"{count} decisions"


def reloads(subject: Subject, until: float) -> str:
    """Reload with another 200,000 names, again and again."""
    count = 0
    while time.monotonic() < until:
        count += 1
        subject.write_names(count)
        subprocess.run(
            [*BLOCKD, "reload", "--accept", "--config", str(subject.blockd.file)], check=False, capture_output=True
        )
    return f"{count} reloads of {NAMES} names"


ATTACKS: dict[str, Callable[[Subject, float], str]] = {
    "pipelining": pipelining,
    "idle": idle,
    "slow-headers": slow_headers,
    "scrapes": scrapes,
    "resets": resets,
    "slow-readers": slow_readers,
    "stalled-log": stalled_log,
    "reloads": reloads,
}


def large(query: dns.message.Message, asked: Asked) -> Reply:
    """Answer with much, if it is asked for."""
    if asked.name == "big.example" and asked.tcp:
        return answer(query, *(f'big.example. 300 IN TXT "{"x" * 250} {at}"' for at in range(200)))
    if asked.name == "big.example":
        # Truncated: ask over TCP.
        short = bytearray(answer(query))
        short[2] |= 2
        return bytes(short)
    return answer(query, f"{asked.name}. 60 IN A 192.0.2.1")


def measure(subject: Subject, attack: Callable[[Subject, float], str], seconds: float) -> dict[str, Any]:
    """Measure quiet times before and after, and the attack between them."""
    highest = 0.0
    is_over = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not is_over.wait(0.05):
            highest = max(highest, subject.memory())

    first = subject.counts()
    time.sleep(seconds / 2)
    second, memory = subject.counts(), subject.memory()
    watching = threading.Thread(target=watch)
    watching.start()
    did = attack(subject, time.monotonic() + seconds)
    third = subject.counts()
    is_over.set()
    watching.join()
    time.sleep(2)
    fourth = subject.counts()
    time.sleep(seconds / 2)
    fifth = subject.counts()
    quiet = {bound: second[bound] - first[bound] + fifth[bound] - fourth[bound] for bound in first}
    none = dict.fromkeys(first, 0.0)
    shares = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}
    return {
        "did": did,
        "quiet": {name: quantile(none, quiet, share) for name, share in shares.items()},
        "attack": {name: quantile(second, third, share) for name, share in shares.items()},
        "memory": max(0.0, highest - memory),
    }


def main(words: list[str]) -> None:
    """Measure each attack that is named, or all, and print a table."""
    is_realtime = "--realtime" in words
    words = [word for word in words if word != "--realtime"]
    seconds = float(words.pop(0)) if words and words[0].replace(".", "", 1).isdigit() else SECONDS
    chosen = {name: ATTACKS[name] for name in words} or ATTACKS
    with tempfile.TemporaryDirectory() as directory, Upstream(large) as upstream:
        subject = Subject(Path(directory), upstream)
        # Whoever attacks is another machine: it must not take the processor from the one that is measured.
        os.nice(10)
        if is_realtime:
            for task in Path(f"/proc/{subject.process.pid}/task").iterdir():
                os.sched_setscheduler(int(task.name), os.SCHED_RR, os.sched_param(1))
        results = {}
        try:
            print("milliseconds      quiet p50    p99  p99.9   attack p50    p99  p99.9    memory  what was done")
            for name, attack in chosen.items():
                found = results[name] = measure(subject, attack, seconds)
                rows = "   ".join(
                    f"{found[when]['p50']:10.1f} {found[when]['p99']:6.1f} {found[when]['p99.9']:6.1f}"
                    for when in ("quiet", "attack")
                )
                print(f"{name:<16} {rows} {found['memory']:6.1f} MB  {found['did']}", flush=True)
        finally:
            subject.stop()
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])

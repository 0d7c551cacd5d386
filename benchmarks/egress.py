"""What it costs that an answer waits for the packet filter: ``python -m benchmarks.egress``, as root.

In a network namespace of its own: 50,000 addresses are learned, then 1,000 new names a second are asked for, each of
which leads to an address that is new. Beside it, in the same run: blockd without a firewall, and dnsmasq with
``--nftset``, which adds to a set of the kernel's, too (without an end, and for names that are not kept alone).
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from tests.support.daemon import BLOCKD, Blockd, free_port

#: Where the names lead: on the public Internet, and nobody is asked there.
FIRST = int(IPv4Address("32.0.0.0"))
DOMAIN = "tiktokcdn.com"
SOCKETS = 16
#: Seconds for the last answers, and of silence after a firewall is started.
PATIENCE = 3.0


def names(first: int, count: int) -> Iterator[str]:
    """Give names that lead to as many addresses."""
    for at in range(first, first + count):
        yield f"v-{str(IPv4Address(FIRST + at)).replace('.', '-')}.{DOMAIN}"


def query(name: str, number: int) -> bytes:
    """Write a question for addresses. RFC 1035 section 4.1."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return number.to_bytes(2, "big") + b"\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1"


def ask(port: int, wanted: Iterator[str], rate: int) -> tuple[list[float], int]:
    """Ask for each at this rate; give the seconds that each answer took from when it was due, and how many had none."""
    selector, sockets = selectors.DefaultSelector(), []
    for _ in range(SOCKETS):
        one = socket.socket(type=socket.SOCK_DGRAM)
        one.connect(("127.0.0.1", port))
        one.setblocking(False)
        selector.register(one, selectors.EVENT_READ)
        sockets.append(one)
    due: dict[tuple[int, int], float] = {}
    took: list[float] = []
    began, sent, is_over, last = time.monotonic(), 0, False, 0.0
    while not is_over or (due and time.monotonic() < last + PATIENCE):
        while not is_over and (at := began + sent / rate) <= (last := time.monotonic()):
            name = next(wanted, None)
            if name is None:
                is_over = True
                break
            one, number = sockets[sent % SOCKETS], sent // SOCKETS % 65536
            one.send(query(name, number))
            due[one.fileno(), number] = at
            sent += 1
        for key, _ in selector.select(0.0005):
            try:
                while reply := key.fileobj.recv(4096):  # type: ignore[union-attr]
                    if (at := due.pop((key.fd, int.from_bytes(reply[:2], "big")), 0.0)) and reply[3] & 15 == 0:
                        took.append(time.monotonic() - at)
            except BlockingIOError:
                continue
    for one in sockets:
        one.close()
    return took, sent - len(took)


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as one:
        try:
            time.sleep(0.5)
            yield one
        finally:
            one.terminate()


DNSMASQ = ("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root")
HERE = ("--listen-address=127.0.0.1", "--bind-interfaces")


@contextmanager
def upstream() -> Iterator[int]:
    """Run a server that knows where all names lead; give its port."""
    port = free_port()
    with process(*DNSMASQ, *HERE, f"--port={port}", f"--synth-domain={DOMAIN},{IPv4Address(FIRST)}/16,v-"):
        yield port


@contextmanager
def blockd(directory: Path, port: int, is_enforced: bool) -> Iterator[int]:
    """Run blockd, with its firewall or without; give its port."""
    directory.mkdir()
    one = Blockd(
        directory,
        [f"127.0.0.1:{port}"],
        groups={"corporate": {"networks": ["10.20.0.0/16"]}, "personal": {"networks": ["127.0.0.0/8"]}},
        policies={"corporate": {"block": ["tiktok"]}, "personal": {}},
        egress={"enabled": is_enforced, "socket": "egress.sock"},
        cache={"size_mb": 64},
    )
    one.values["server"]["threads"] = 1
    one.write()
    with one, ExitStack() as stack:
        if is_enforced:
            stack.enter_context(process(*BLOCKD, "egress", "--config", str(one.file)))
            deadline = time.monotonic() + 20
            while one.run("egress", "status").returncode and time.monotonic() < deadline:
                time.sleep(0.1)
        yield one.port
        if is_enforced:
            print("  answers that did not wait long enough:", int(one.metric("blockd_egress_late_total")))


@contextmanager
def dnsmasq(port: int) -> Iterator[int]:
    """Run dnsmasq, which adds to a set of its own."""
    own = free_port()
    subprocess.run(["nft", "add table inet theirs; add set inet theirs tiktok { type ipv4_addr; }"], check=True)
    options = (f"--port={own}", f"--server=127.0.0.1#{port}", "--dns-forward-max=10000", "--cache-size=10000")
    with process(*DNSMASQ, *HERE, *options, f"--nftset=/{DOMAIN}/4#inet#theirs#tiktok"):
        yield own


def measure(title: str, port: int, known: int, rate: int, seconds: int) -> float:
    """Fill, then measure; give the median, seconds."""
    _, lost = ask(port, names(0, known), 4_000)
    took, lost = ask(port, names(known, rate * seconds), rate)
    took.sort()
    at = [took[int(len(took) * part)] * 1000 for part in (0.5, 0.95, 0.99, 0.999)]
    times = f"p50 {at[0]:.1f} ms, p95 {at[1]:.1f}, p99 {at[2]:.1f}, p99.9 {at[3]:.1f}, most {took[-1] * 1000:.1f}"
    print(f"{title}: {times}; {lost} of {rate * seconds} without an answer", flush=True)
    return at[0] / 1000


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--known", type=int, default=50_000)
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        words = [sys.executable, "-m", "benchmarks.egress", "--inside", *sys.argv[1:]]
        raise SystemExit(subprocess.call(["unshare", "--net", *words], env=os.environ))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    sizes = (options.known, options.rate, options.seconds)
    with tempfile.TemporaryDirectory() as directory, upstream() as port:
        with blockd(Path(directory) / "with", port, True) as own:
            ours = measure("blockd with its firewall", own, *sizes)
        with blockd(Path(directory) / "without", port, False) as own:
            alone = measure("blockd without", own, *sizes)
        with dnsmasq(port) as own:
            theirs = measure("dnsmasq with a set", own, *sizes)
    print(f"median over dnsmasq's: {ours / theirs:.2f}; over blockd's own without a firewall: {ours / alone:.2f}")


if __name__ == "__main__":
    main()

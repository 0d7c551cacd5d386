"""What it costs that an answer waits for the packet filter: ``python -m benchmarks.egress``, as root.

In a network namespace of its own: 50,000 addresses are learned, then 1,000 new names a second are asked for, each of
which leads to an address that is new. Beside it, in the same run: blockd without a firewall, and dnsmasq with
``--nftset``, which adds to a set of the kernel's, too (without an end, and for names that are not kept alone). Then the
same once more in trouble: policies that change, a flush of all rules, a firewall that is killed.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
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
#: Names a second that are asked for before anything is measured.
FILLING = 2_500
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
    selector, sockets = selectors.DefaultSelector(), list[socket.socket]()
    for _ in range(SOCKETS):
        one = socket.socket(type=socket.SOCK_DGRAM)
        # Many clients: what one may have outstanding is bounded.
        one.bind((f"127.0.1.{len(sockets) + 1}", 0))
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


class Gateway:
    """blockd, with its firewall or without."""

    def __init__(self, directory: Path, port: int, is_enforced: bool) -> None:
        """Write its config; `port` is the upstream's."""
        directory.mkdir()
        self.blockd = Blockd(
            directory,
            [f"127.0.0.1:{port}"],
            groups={"corporate": {"networks": ["10.20.0.0/16"]}, "personal": {"networks": ["127.0.0.0/8"]}},
            policies={"corporate": {"block": ["tiktok"]}, "personal": {}},
            egress={"enabled": is_enforced, "socket": "egress.sock"},
            cache={"size_mb": 64},
        )
        self.blockd.values["server"]["threads"] = 1
        self.blockd.write()
        self.stack = ExitStack()
        self.is_enforced = is_enforced
        self.firewall: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Gateway:
        """Run it, until all is enforced."""
        self.stack.enter_context(self.blockd)
        if self.is_enforced:
            self.enforce()
            self.settle()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.stack.close()

    def enforce(self) -> None:
        """Run the firewall."""
        command = (*BLOCKD, "egress", "--config", str(self.blockd.file))
        self.firewall = self.stack.enter_context(process(*command))

    def settle(self) -> bool:
        """Wait until all of it is enforced; False when it is not within twenty seconds."""
        deadline = time.monotonic() + 20
        while self.blockd.run("egress", "status").returncode and time.monotonic() < deadline:
            time.sleep(0.1)
        return time.monotonic() < deadline

    def trouble(self) -> None:
        """Have everything happen to it in turn, until the end."""
        for block in (["tiktok", "temu"], ["tiktok"]):
            self.blockd.values["policies"]["corporate"]["block"] = block
            self.blockd.reload()
            subprocess.run(["nft", "flush", "ruleset"], check=True)
            time.sleep(0.5)
            if self.firewall is not None:
                self.firewall.kill()
            self.enforce()

    def late(self) -> int:
        """Count the answers that left before the kernel knew."""
        return int(self.blockd.metric("blockd_egress_not_told_total", reason="late"))

    def enforced(self) -> int:
        """Count the addresses that the kernel has."""
        listed = subprocess.run(
            ["nft", "list", "set", "inet", "blockd", "learned4-tiktok"], capture_output=True, text=True, check=True
        ).stdout
        return listed.count("expires")


@contextmanager
def dnsmasq(port: int) -> Iterator[int]:
    """Run dnsmasq, which adds to a set of its own."""
    own = free_port()
    subprocess.run(["nft", "add table inet theirs; add set inet theirs tiktok { type ipv4_addr; }"], check=True)
    options = (f"--port={own}", f"--server=127.0.0.1#{port}", "--dns-forward-max=10000", "--cache-size=10000")
    with process(*DNSMASQ, *HERE, *options, f"--nftset=/{DOMAIN}/4#inet#theirs#tiktok"):
        yield own


def measure(title: str, port: int, first: int, sizes: tuple[int, int]) -> dict[str, float]:
    """Ask for names from there on; print what it took, and give it, milliseconds."""
    rate, seconds = sizes
    took, lost = ask(port, names(first, rate * seconds), rate)
    took.sort()
    parts = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "p99.9": 0.999, "most": 1.0}
    found = {name: took[min(int(len(took) * part), len(took) - 1)] * 1000 for name, part in parts.items()}
    times = ", ".join(f"{name} {value:.1f} ms" for name, value in found.items())
    print(f"{title}: {times}; {lost} of {rate * seconds} without an answer", flush=True)
    return {**found, "lost": lost}


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--known", type=int, default=50_000)
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--alone", action="store_true", help="blockd with its firewall, and nothing beside it")
    parser.add_argument("--json", action="store_true", help="the figures once more, as the last line")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        words = [sys.executable, "-m", "benchmarks.egress", "--inside", *sys.argv[1:]]
        raise SystemExit(subprocess.call(["unshare", "--net", *words], env=os.environ))
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    known, sizes = options.known, (options.rate, options.seconds)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory, upstream() as port:
        with Gateway(Path(directory) / "with", port, True) as gateway:
            own, asked = gateway.blockd.port, options.rate * options.seconds
            ask(own, names(0, known), FILLING)
            before = gateway.late()
            found["blockd"] = measure("blockd with its firewall", own, known, sizes)
            found["blockd"]["late"] = gateway.late() - before
            trouble = threading.Thread(target=gateway.trouble)
            trouble.start()
            found["trouble"] = measure("the same in trouble", own, known + asked, sizes)
            trouble.join()
            is_settled, wanted = gateway.settle(), known + 2 * asked
            found["trouble"] |= {"settled": is_settled, "late": gateway.late() - before}
            found["trouble"]["lacking"] = wanted - gateway.enforced()
            print(
                f"  answers that did not wait long enough: {found['blockd']['late']}, in trouble "
                f"{found['trouble']['late']}; {'all' if is_settled else 'NOT all'} in force at the end, "
                f"{found['trouble']['lacking']} of {wanted} addresses lacking"
            )
        if not options.alone:
            with Gateway(Path(directory) / "without", port, False) as gateway:
                ask(gateway.blockd.port, names(0, known), FILLING)
                found["without"] = measure("blockd without", gateway.blockd.port, known, sizes)
            with dnsmasq(port) as own:
                ask(own, names(0, known), FILLING)
                found["dnsmasq"] = measure("dnsmasq with a set", own, known, sizes)
            ours = found["blockd"]["p50"]
            ratios = ours / found["dnsmasq"]["p50"], ours / found["without"]["p50"]
            print(f"median over dnsmasq's: {ratios[0]:.2f}; over blockd's own without a firewall: {ratios[1]:.2f}")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()

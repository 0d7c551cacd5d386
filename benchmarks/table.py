"""CPU microseconds a query for hits, blocks and misses: blockd beside Unbound and dnsdist, in one run.

Each server is pinned to core 0, dnsperf to core 1; dnsperf asks at a fixed rate that all of them can hold, so the
figure is cost, not capacity. CPU is the server process's user and system time from /proc over the answers received.
Rounds go in turn over the servers; the table has medians and the spread.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import dns.message
import dns.query

from benchmarks.servers import BLOCKED, CACHED_NAMES, LOAD_CORE, SERVERS, BenchmarkError, Server
from tests.support.servers import Nsd

RESULTS = Path(__file__).parent / "results" / "table.md"
ROUNDS, SECONDS, TRIES = 3, 4, 3
RATES = {"hits": 20_000, "blocks": 20_000, "misses": 5_000}
ZONES = {"example": "* A 192.0.2.1\n", "tiktok.com": "* A 192.0.2.2\n@ A 192.0.2.2\n"}
WANTED = {"hits": "NOERROR", "blocks": "NXDOMAIN", "misses": "NOERROR"}

Questions = Callable[[int], list[str]]

#: What is asked, by the number of the round: misses are names that nobody asked before.
QUESTIONS: dict[str, Questions] = {
    "hits": lambda _: [f"c{at}.example A" for at in range(CACHED_NAMES)],
    "blocks": lambda _: [f"c{at}.{BLOCKED} A" for at in range(CACHED_NAMES)],
    "misses": lambda turn: [f"u{turn}x{at}.example A" for at in range(RATES["misses"] * (SECONDS + 2))],
}


def check_answers(server: Server) -> None:
    """See that the policy is the same everywhere before anything is measured."""
    for name, wanted in (("c1.example", 0), (f"c1.{BLOCKED}", 3), (BLOCKED, 3)):
        got = dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.1", timeout=3, port=server.port)
        if int(got.rcode()) != wanted or bool(got.answer) != (wanted == 0):
            raise BenchmarkError(f"{server.name} answers {name} with {got}")


def dnsperf(server: Server, questions: list[str], *words: str) -> str:
    """Run the load generator on its core."""
    with tempfile.NamedTemporaryFile("w", suffix=".queries") as file:
        file.write("\n".join(questions) + "\n")
        file.flush()
        command = ["taskset", "-c", LOAD_CORE, "dnsperf", "-s", "127.0.0.1", "-p", str(server.port), "-d", file.name]
        done = subprocess.run([*command, *words], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise BenchmarkError(f"dnsperf against {server.name}: {done.stderr or done.stdout}")
    return done.stdout


def measure(server: Server, kind: str, turn: int) -> float:
    """Give CPU microseconds a query for one server and one kind of question."""
    questions = QUESTIONS[kind](turn)
    if kind == "hits":
        dnsperf(server, questions, "-n", "1", "-Q", "10000")
    before = server.cpu_seconds()
    words = ["-l", str(SECONDS), "-Q", str(RATES[kind]), "-c", "8", "-q", "200", "-t", "2"]
    output = dnsperf(server, questions, *words)
    spent = server.cpu_seconds() - before
    completed = int(re.search(r"Queries completed:\s+(\d+)", output).group(1))  # type: ignore[union-attr]
    lost = int(re.search(r"Queries lost:\s+(\d+)", output).group(1))  # type: ignore[union-attr]
    codes = re.search(r"Response codes:\s+(.*)", output)
    if lost or completed < RATES[kind] * SECONDS * 0.95:
        raise BenchmarkError(f"{server.name}, {kind}: {completed} answered, {lost} lost")
    if codes is None or not re.fullmatch(rf"{WANTED[kind]} \d+ \(100.00%\)", codes.group(1).strip()):
        raise BenchmarkError(f"{server.name}, {kind}: {codes and codes.group(1)} instead of {WANTED[kind]}")
    return spent / completed * 1e6


def measure_again(server: Server, kind: str, turn: int) -> float:
    """Measure; what is spoilt by a lost query is thrown away whole and taken anew, twice at most."""
    for spoilt in range(TRIES - 1):
        try:
            return measure(server, kind, turn * TRIES + spoilt)
        except BenchmarkError as error:
            print(f"taken anew: {error}", file=sys.stderr)
    return measure(server, kind, turn * TRIES + TRIES - 1)


def table(figures: dict[str, dict[str, list[float]]], versions: dict[str, str]) -> str:
    """Write the table: ratios first, then microseconds with their spread."""
    kinds = list(RATES)
    median = {name: {kind: statistics.median(rows[kind]) for kind in kinds} for name, rows in figures.items()}
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    rows = [
        "# CPU a query",
        "",
        f"{datetime.date.today()}, {os.cpu_count()} cores of {model.group(1) if model else platform.machine()}, "
        f"Linux {platform.release()}; `make bench` writes this file.",
        f"{ROUNDS} rounds in turn of {SECONDS} s at a fixed rate "
        f"({', '.join(f'{kind} {rate:,} a second' for kind, rate in RATES.items())}); one server thread on core 0, "
        "dnsperf on core 1, NSD behind.",
        "",
        "| blockd's CPU over | hits | blocks | misses |",
        "| --- | --- | --- | --- |",
    ]
    for name in figures:
        if name != "blockd":
            ratios = [f"{median['blockd'][kind] / median[name][kind]:.2f}" for kind in kinds]
            rows.append(f"| {name}'s | " + " | ".join(ratios) + " |")
    rows += ["", "| CPU µs a query: median (least to most) | hits | blocks | misses |", "| --- | --- | --- | --- |"]
    for name, kind_rows in figures.items():
        cells = [f"{median[name][k]:.1f} ({min(kind_rows[k]):.1f} to {max(kind_rows[k]):.1f})" for k in kinds]
        rows.append(f"| {versions[name]} | " + " | ".join(cells) + " |")
    rows += [
        "",
        "dnsdist is a proxy: it resolves nothing itself, and as shipped keeps one port and counts up its IDs.",
        "",
    ]
    return "\n".join(rows)


def main() -> int:
    """Measure and write the table; 1 and no figure when anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print only, write no file")
    arguments = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        print("two cores are needed: one for the server, one for the load", file=sys.stderr)
        return 1
    figures: dict[str, dict[str, list[float]]] = {}
    running: list[Server] = []
    try:
        with tempfile.TemporaryDirectory() as directory, Nsd(Path(directory) / "nsd", ZONES) as nsd:
            running = [kind(Path(directory), nsd.port) for kind in SERVERS]
            for server in running:
                figures[server.name] = {kind: [] for kind in RATES}
                server.start()
                check_answers(server)
            for turn in range(ROUNDS):
                for kind in RATES:
                    for server in running:
                        spent = measure_again(server, kind, turn)
                        figures[server.name][kind].append(spent)
                        print(f"round {turn + 1} {kind:7} {server.name:8} {spent:6.1f} µs", file=sys.stderr)
            versions = {server.name: server.version() for server in running}
    except BenchmarkError as error:
        print(f"no figure: {error}", file=sys.stderr)
        return 1
    finally:
        for server in running:
            server.stop()
    text = table(figures, versions)
    print(text)
    if not arguments.print:
        RESULTS.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The load: which questions, how they are asked, what counts as an answer."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.servers import BLOCKED, BUILT, CACHED_NAMES, LOAD_CORE, BenchmarkError, Server

#: Client addresses; at the default limit of one client they may ask two million questions a second.
SOURCES = 1_000
SOCKETS = 16
#: As many sockets as a resolver sees clients: a batch of 64 queries then goes back to 64 sockets.
MANY_SOCKETS = 1_000
#: Questions under way in a closed loop: two batches, and no more than the smallest receive buffer of any rival holds.
IN_FLIGHT = 128
#: Of the Zipf distribution over a million names (Jung et al. 2002 found 0.9 to 1 for DNS).
ZIPF = 0.95

_unique = itertools.count()


#: Part of a wanted rate that must have been offered, or of a server's CPU that must have been used, to speak of a load.
LOADED = 0.95, 0.9
#: How far a ratio that cannot be more than one may be above it: what runs of one build differ by.
NOISE = 0.1


class CannotLoadError(BenchmarkError):
    """The generator is too slow for this server: there is no figure, and nothing is wrong with the server."""


class LostError(BenchmarkError):
    """Answers did not come: the one thing that may be a busy machine's doing, and may be tried again."""


def check_offered(offered: float, rate: float) -> None:
    """Raise CannotLoadError if fewer queries a second were offered than wanted."""
    if offered < LOADED[0] * rate:
        raise CannotLoadError(
            f"the generator cannot load this server: it offered {offered:,.0f} queries a second of {rate:,.0f}"
        )


@dataclass(frozen=True)
class Report:
    """What one run of the generator saw, and what it cost the server."""

    sent: int
    answered: int
    lost: int
    #: Not sent since every ID was in use, or the kernel took no more: the server was that far behind.
    not_asked: int
    wrong: int
    #: SERVFAIL where an answer was expected.
    failed: int
    rate: float
    #: Microseconds: p50, p99, p99.9, max.
    latency: dict[str, float]
    cpu_us: float
    #: With `every`: one part after the other.
    parts: list[dict[str, Any]]
    #: How long it lasted.
    seconds: float

    @property
    def offered(self) -> float:
        """Queries a second that were sent."""
        return self.sent / self.seconds

    @property
    def cores(self) -> float:
        """How much of one core the server used."""
        return self.cpu_us * self.answered / 1e6 / self.seconds

    def check_saturated(self, cores: float) -> None:
        """Raise CannotLoadError if the server had so many cores and did not use them: its peak is not known then."""
        if self.cores < LOADED[1] * cores:
            raise CannotLoadError(
                f"the generator cannot load this server: at {self.rate:,.0f} answers a second it used "
                f"{self.cores:.2f} of {cores:g} cores"
            )

    def part_of(self, peak: float) -> float:
        """Give the rate as a part of a peak. BenchmarkError if it is more than noise can make of all of it."""
        if self.rate > (1 + NOISE) * peak:
            raise BenchmarkError(
                f"impossible: {self.rate:,.0f} answers a second, where {peak:,.0f} were measured as the server's peak"
            )
        return self.rate / peak


def hits(count: int = CACHED_NAMES) -> list[str]:
    """Ask for names that were asked before."""
    return [f"c{at}.example A 0" for at in range(count)]


def mixed_sizes() -> list[str]:
    """Ask for names that were asked before: every other answer has 300 octets more."""
    return [f"c{at}.example {'TXT' if at % 2 else 'A'} 0" for at in range(CACHED_NAMES)]


def zipf_hits(count: int, questions: int) -> list[str]:
    """Ask for some of many names, a few often and most seldom."""
    weights = list(itertools.accumulate(1 / (rank + 1) ** ZIPF for rank in range(count)))
    chosen = random.Random(1).choices(range(count), cum_weights=weights, k=questions)
    # Rank and name are apart, so that the often asked do not lie together.
    return [f"c{at * 7_919 % count}.example A 0" for at in chosen]


def blocks() -> list[str]:
    """Ask for names of a blocked app."""
    return [f"c{at}.{BLOCKED} A 3" for at in range(CACHED_NAMES)]


def random_blocks() -> list[str]:
    """Ask for names below a blocked name, never one twice."""
    return [f"{random.getrandbits(60):015x}.{BLOCKED} A 3" for _ in range(900_000)]


def misses(count: int = 400_000) -> list[str]:
    """Ask for names that nobody asked before."""
    run = next(_unique)
    return [f"u{run}x{at}.example A 0" for at in range(count)]


def mixed(miss_part: float, count: int = 1_400_000) -> list[str]:
    """Ask for hits, one in five of them blocked, and a part of names that nobody asked before."""
    cached, blocked, new = itertools.cycle(hits()), itertools.cycle(blocks()), iter(misses(count))
    draw = random.Random(2)
    return [
        next(new) if draw.random() < miss_part else next(blocked) if draw.random() < 0.2 else next(cached)
        for _ in range(count)
    ]


def start_load(server: Server, file: Path, *words: object, host: str = "127.0.0.1") -> subprocess.Popen[str]:
    """Start the generator on its core."""
    target = f"[{host}]:{server.port}" if ":" in host else f"{host}:{server.port}"
    command = ["taskset", "-c", LOAD_CORE, str(BUILT / "load"), "--server", target, "--queries", str(file)]
    return subprocess.Popen([*command, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(
    server: Server,
    questions: Iterable[str],
    seconds: float = 3,
    rate: float = 0,
    in_flight: int = IN_FLIGHT,
    sources: int = SOURCES,
    sockets: int = SOCKETS,
    host: str = "127.0.0.1",
    once: bool = False,
    edns: bool = False,
    every: float = 0,
    lossy: bool = False,
    nap_us: int = 0,
    patience_ms: int = 2_500,
    is_unique: bool = False,
) -> Report:
    """Ask; with a rate by the clock, else as fast as answers come. BenchmarkError when an answer is wrong or lost.

    With `lossy`, lost and failed ones are reported instead: a server that is offered more than it can carry must lose
    some. With `is_unique`, no question may come twice: the file was too short, then.
    """
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "queries"
        asked = list(questions)
        count = len(asked)
        file.write_text("\n".join(asked) + "\n")
        del asked
        words: list[object] = ["--seconds", seconds, "--sources", sources, "--sockets", sockets]
        words += [
            "--in-flight",
            in_flight,
            "--rate",
            rate,
            "--every",
            every,
            "--nap-us",
            nap_us,
            "--patience-ms",
            patience_ms,
        ]
        words += [word for word, is_on in (("--once", once), ("--edns", edns)) if is_on]
        before = server.cpu_seconds()
        process = start_load(server, file, *words, host=host)
        out, err = process.communicate(timeout=seconds + 120)
        spent = server.cpu_seconds() - before
    if process.returncode:
        raise BenchmarkError(f"the load generator against {server.name}: {err}")
    return judge(server.name, out, spent, rate=0 if once else rate, lossy=lossy, unique=count if is_unique else None)


def judge(
    name: str, out: str, spent: float, *, rate: float = 0, lossy: bool = False, unique: int | None = None
) -> Report:
    """Make a report of what the generator printed and the server's CPU seconds; errors are those of :func:`run`.

    `unique` is the number of questions where none may come twice.
    """
    *parts, last = [json.loads(line) for line in out.splitlines()]
    if last["wrong"]:
        raise BenchmarkError(f"{name}: {last['wrong']} wrong answers, such as {last['shown'][:1]}")
    if last["late"] > last["lost"] + last["wrong"]:
        raise BenchmarkError(f"{name}: {last['late']} answers to nothing that was asked")
    if last["answered"] > last["sent"]:
        raise BenchmarkError(f"impossible: {name} answered {last['answered']} of {last['sent']} queries")
    if unique is not None and last["sent"] > unique:
        raise BenchmarkError(f"{unique} questions are too few for {name}: the same came again")
    if rate:
        # What found no free ID was offered, too: the server was behind, not the generator.
        check_offered((last["sent"] + last["not_asked"]) / last["seconds"], rate)
    if not lossy and last["not_asked"] and not last["lost"] + last["failed"]:
        cores = spent / last["seconds"]
        if cores < LOADED[1]:
            raise CannotLoadError(
                f"the generator cannot load this server: {last['not_asked']} queries waited for a free ID while {name} "
                f"used {cores:.2f} of a core"
            )
    if not last["answered"] or (not lossy and last["lost"] + last["not_asked"] + last["failed"] > 0):
        raise LostError(
            f"{name}: {last['answered']} answered, {last['lost']} lost, {last['failed']} failed, "
            f"{last['not_asked']} could not be asked"
        )
    return Report(
        last["sent"],
        last["answered"],
        last["lost"],
        last["not_asked"] + last["not_sent"],
        last["wrong"],
        last["failed"],
        last["rate"],
        last["latency_us"],
        spent / last["answered"] * 1e6,
        parts,
        last["seconds"],
    )


def dnsperf(server: Server, questions: list[str], seconds: float = 3) -> float:
    """Give the answers a second that the tool everyone knows gets. BenchmarkError when it fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".queries") as file:
        file.write("\n".join(line.rsplit(" ", 1)[0] for line in questions) + "\n")
        file.flush()
        command = ["taskset", "-c", LOAD_CORE, "dnsperf", "-s", "127.0.0.1", "-p", str(server.port), "-d", file.name]
        command += ["-l", str(int(seconds)), "-c", "8", "-q", "200", "-T", "1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    found = re.search(r"Queries per second:\s+([0-9.]+)", done.stdout)
    if done.returncode or found is None:
        raise BenchmarkError(f"dnsperf against {server.name}: {done.stderr or done.stdout}")
    return float(found.group(1))

"""One question about cost a function: each starts what it needs, measures, and gives figures."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import platform
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.request import urlopen

import dns.message
import dns.query

from benchmarks import load
from benchmarks.load import CannotLoadError, LostError, Report, run
from benchmarks.servers import (
    BLOCKED,
    CACHED_NAMES,
    LOAD_CORE,
    SERVER_CORE,
    BenchmarkError,
    Blockd,
    ChangingBlockd,
    Recursor,
    Server,
    Unbound,
)
from tests.support.servers import RealServer

#: A TXT record of some 300 octets, for answers of another size than one address.
LONG_TEXT = f'* TXT "{"x" * 250}" "{"y" * 40}"\n'
ZONES = {"example": f"* A 192.0.2.1\n{LONG_TEXT}", "tiktok.com": "* A 192.0.2.2\n@ A 192.0.2.2\n"}
TRIES = 3

Figures = dict[str, Any]
#: One thread on the core that the generator has.
SHARED = "one on the generator's"

#: Runs that lost something and were taken again, for the page.
taken_anew: list[str] = []


def say(text: str) -> None:
    """Tell who waits how far it is."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Start a server, see that its answers are the right ones, and end it."""
    server.start()
    try:
        if server.name != "bare loop":
            check_answers(server)
        yield server
    finally:
        server.stop()


def check_answers(server: Server) -> None:
    """See that the policy is the same everywhere before anything is measured."""
    for name, wanted in (("c1.example", 0), (f"c1.{BLOCKED}", 3), (BLOCKED, 3)):
        got = dns.query.udp(dns.message.make_query(name, "A"), "127.0.0.1", timeout=3, port=server.port)
        addresses = [record.address for rrset in got.answer for record in rrset if record.rdtype == 1]
        if int(got.rcode()) != wanted or addresses != ([] if wanted else ["192.0.2.1"]):
            raise BenchmarkError(f"{server.name} answers {name} with {got}")


def again(measure: Callable[[], Report]) -> Report:
    """Measure; what a lost query or a slow generator spoils is taken anew, twice at most; the page says so."""
    for _ in range(TRIES - 1):
        try:
            return measure()
        except (CannotLoadError, LostError) as error:
            taken_anew.append(str(error))
            say(f"taken anew: {error}")
    return measure()


def warm(server: Server, questions: Sequence[str]) -> None:
    """Ask everything once, gently, so that it is cached; what is lost is asked again."""
    for _ in range(4):
        if not run(server, questions, once=True, in_flight=64, seconds=60, lossy=True).lost:
            return
    raise BenchmarkError(f"{server.name} does not answer everything once")


#: Hits again, from as many sockets as a resolver sees clients.
MANY = f"hits from {load.MANY_SOCKETS:,} sockets"
KINDS: dict[str, Callable[[], list[str]]] = {
    "hits": load.hits,
    MANY: load.hits,
    "blocks": load.blocks,
    "random subdomains": load.random_blocks,
    "misses": load.misses,
}


#: Questions that must not come twice.
UNIQUE = ("random subdomains", "misses")


def compare(
    servers: Sequence[Server],
    kinds: Sequence[str],
    rounds: int,
    seconds: float,
    rate: float = 0,
    sockets: int = load.SOCKETS,
    *,
    may_rivals_lose: bool = False,
) -> Figures:
    """Ask all servers in turn, round by round: CPU a query, rate, latency and losses by kind and server.

    Random subdomains are asked of blockd alone: they are held against its own hits. With `may_rivals_lose`, a query
    that a rival loses is counted; one that blockd loses is an error in any case.
    """
    figures: Figures = {kind: {server.name: [] for server in servers} for kind in kinds}
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(running(server))
            if server.name != "bare loop" and "hits" in kinds:
                warm(server, load.hits())
        for turn in range(rounds):
            for kind in kinds:
                for server in servers:
                    if kind == "random subdomains" and server.name != "blockd":
                        continue
                    words = {"is_unique": kind in UNIQUE, "sockets": load.MANY_SOCKETS if kind == MANY else sockets}
                    words["lossy"] = may_rivals_lose and server.name != "blockd"
                    report = again(lambda s=server, k=kind, w=words: run(s, KINDS[k](), seconds, rate, **w))  # type: ignore[misc]
                    row = {"cpu_us": report.cpu_us, "rate": report.rate, "cores": report.cores, **report.latency}
                    row["lost"] = report.lost
                    figures[kind][server.name].append(row)
                    say(f"round {turn + 1} {kind:17} {server.name:15} {report.cpu_us:6.2f} µs {report.rate:9.0f}/s")
    return figures


def median(rows: list[dict[str, float]], key: str = "cpu_us") -> float:
    """Take the middle of the rounds."""
    return statistics.median(row[key] for row in rows)


def spread(rows: list[dict[str, float]], key: str = "cpu_us") -> tuple[float, float]:
    """Take the least and the most of the rounds."""
    return min(row[key] for row in rows), max(row[key] for row in rows)


#: A way to ask a server, at a rate; 0 is as fast as it answers.
Ask = Callable[[float], Report]
#: What the best rivals answer at most, in tenths: a normal day.
TENTH = 16_000


def asking(server: Server, questions: Callable[[], Sequence[str]], **words: Any) -> Ask:
    """Ask a server for two seconds; questions that must not come twice are made anew each time."""
    return lambda rate: run(server, questions(), 2, rate, **words)


def in_turn(asks: Sequence[Ask], rounds: int = 3) -> list[Figures]:
    """Ask in turn, round by round: CPU a query at peak, the median, for the machine's speed drifts; and at a tenth."""
    reports = [[again(lambda a=ask: a(0)).cpu_us for ask in asks] for _ in range(rounds)]  # type: ignore[misc]
    peaks = [statistics.median(column) for column in zip(*reports, strict=True)]
    tenths = [again(lambda a=ask: a(TENTH)).cpu_us for ask in asks]  # type: ignore[misc]
    return [{"peak": peak, "tenth": tenth} for peak, tenth in zip(peaks, tenths, strict=True)]


def hits_and_blocks(figures: Sequence[Figures], at: int) -> Figures:
    """Give the figures of one server of several, each asked for hits and then for blocked names."""
    hit, block = figures[2 * at : 2 * at + 2]
    return {
        "hit": hit["peak"],
        "block": block["peak"],
        "hit at a tenth": hit["tenth"],
        "block at a tenth": block["tenth"],
    }


def half_load(nsd: RealServer, directory: Path, rate: float, sockets: int = load.SOCKETS) -> Figures:
    """Ask hits of the resolvers that are nearest, all at one rate."""
    servers = [kind(directory, nsd.port) for kind in (Blockd, Unbound, Recursor)]
    return compare(servers, ["hits"], 3, 3, rate, sockets, may_rivals_lose=True)


def shapes(nsd: RealServer, directory: Path) -> Figures:
    """Ask one blockd in many ways: what a hit costs by each, in microseconds."""

    class Generous(Blockd):
        # One client is all that there is on the IPv6 loopback, and must not meet its limit.
        server_options: ClassVar = {"client_rate": 1_000_000, "client_burst": 1_000_000}

    with running(Generous(directory, nsd.port)) as server:
        warm(server, load.hits())
        ways: dict[str, dict[str, Any]] = {
            "plain": {},
            "EDNS": {"edns": True},
            "one client": {"sources": 1},
            "one client, IPv6": {"host": "::1", "sources": 1},
            "64 sockets": {"sockets": 64},
            "1,000 sockets": {"sockets": load.MANY_SOCKETS},
            "512 in flight": {"in_flight": 512},
        }
        warm(server, load.mixed_sizes())
        asks = {way: asking(server, load.hits, **words) for way, words in ways.items()}
        asks["mixed sizes"] = asking(server, load.mixed_sizes, edns=True)
        for part in (0, 0.01, 0.1, 0.3):
            asks[f"{part:.0%} misses"] = asking(server, functools.partial(load.mixed, part), is_unique=part > 0)
        figures = dict(zip(asks, in_turn(list(asks.values())), strict=True))
        say(f"shapes: {figures}")
    return figures


def names(directory: Path, count: int) -> Path:
    """Write so many names of a list, one a line."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"names-{count}"
    draw = random.Random(count)
    with file.open("w") as lines:
        lines.writelines(f"n{at:x}.w{draw.getrandbits(24):x}.invalid\n" for at in range(count))
    return file


def million_cached(nsd: RealServer, directory: Path, count: int = 1_000_000) -> Figures:
    """Compare hits over many cached names with hits over few, both on a cache that holds all."""

    class Large(Blockd):
        cache_mb = 1024

    few, many = Large(directory / "few", nsd.port), Large(directory / "many", nsd.port)
    with running(few), running(many):
        warm(few, load.hits())
        warm(many, load.hits(count))
        small, large = load.hits(), load.zipf_hits(count, 1_000_000)
        a, b = in_turn([asking(few, lambda: small), asking(many, lambda: large)])
    say(f"hits over {CACHED_NAMES:,} names {a}, over {count:,} {b}")
    return {"few": a, "many": b}


def rules(nsd: RealServer, directory: Path, counts: Sequence[int] = (100, 1_000_000, 10_000_000)) -> Figures:
    """Grow the list: hits and blocked names by its length, and how long a start takes."""
    servers, seconds, asks = [], [], []
    try:
        for count in counts:
            listed = names(directory, count)
            server = Blockd(directory, nsd.port, listed)
            servers.append(server)
            seconds.append(server.start(patience=300))
            check_answers(server)
            warm(server, load.hits())
            with listed.open() as lines:
                asked = [f"{next(lines).rstrip()} A 3" for _ in range(min(count, 300_000))]
            random.Random(3).shuffle(asked)
            asks += [asking(server, load.hits), asking(server, functools.partial(list, asked))]
        values = in_turn(asks)
    finally:
        for server in servers:
            server.stop()
    figures = {
        str(count): {**hits_and_blocks(values, at), "start_seconds": seconds[at]} for at, count in enumerate(counts)
    }
    say(f"rules: {figures}")
    return figures


def pss(pids: Sequence[int]) -> int:
    """Add up the proportional set sizes, octets; a process that is gone has none."""
    total = 0
    for pid in pids:
        try:
            found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
        except OSError:
            continue
        total += int(found.group(1)) * 1024 if found else 0
    return total


def family(pid: int) -> list[int]:
    """List a process and its children."""
    children = [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]
    return [pid, *(other for child in children for other in family(int(child)))]


class _Peak(threading.Thread):
    """Samples the memory of a process and its children every 10 ms."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.pid, self.most, self.is_over = pid, 0, False

    def run(self) -> None:
        while not self.is_over:
            with contextlib.suppress(OSError):
                self.most = max(self.most, pss(family(self.pid)))
            time.sleep(0.01)


def memory(nsd: RealServer, directory: Path, counts: Sequence[int] = (1_000_000, 10_000_000)) -> Figures:
    """Weigh the process: bare, loaded, after a reload, and the most during it; octets a name."""
    figures: Figures = {}
    empty = names(directory, 0)
    with running(Blockd(directory, nsd.port, empty)) as bare:
        time.sleep(1)
        base = pss(family(bare.pid))
    for count in counts:
        listed = names(directory, count)
        server = Blockd(directory / "memory", nsd.port, listed)
        server.start(patience=300)
        try:
            with listed.open() as lines:
                asked = [f"{line.rstrip()} A 3" for line in lines]
            run(server, asked, once=True, seconds=300, lossy=True)
            del asked
            loaded = pss(family(server.pid))
            peak = _Peak(server.pid)
            peak.start()
            server.reload()
            time.sleep(1)
            peak.is_over = True
            peak.join()
            after = pss(family(server.pid))
        finally:
            server.stop()
        figures[str(count)] = {
            "bare_mb": base / 1e6,
            "loaded_mb": loaded / 1e6,
            "after_mb": after / 1e6,
            "peak_mb": peak.most / 1e6,
            "octets_a_name": (loaded - base) / count,
            "octets_a_name_after": (after - base) / count,
            "peak": peak.most / loaded,
        }
        say(f"{count:,} names: {figures[str(count)]}")
    return figures


def loading(nsd: RealServer, directory: Path, count: int = 1_000_000, rounds: int = 3) -> Figures:
    """Load a list into blockd, by a reload, and into PowerDNS Recursor, by its start less that of an empty one."""
    listed, one = names(directory, count), names(directory, 1)
    times, others = [], []
    for turn in range(rounds):
        where = directory / f"loading{turn}"
        server = Blockd(where, nsd.port, one)
        with running(server):
            assert isinstance(server, Blockd)
            hosts = server.directory / "listed.hosts"
            with hosts.open("w") as lines, listed.open() as all_names:
                lines.writelines(f"0.0.0.0 {name}" for name in all_names)
            times.append(server.reload())
        spans = []
        for extra in (one, listed):
            rival = Recursor(where, nsd.port, extra)
            spans.append(rival.start(patience=120))
            rival.stop()
        others.append(spans[1] - spans[0])
        say(f"{count:,} names: blockd {times[-1]:.2f} s, Recursor {others[-1]:.2f} s")
    return {"blockd": statistics.median(times), "Recursor": statistics.median(others)}


def devices(nsd: RealServer, directory: Path, counts: Sequence[int] = (10, 10_000, 1_000_000)) -> Figures:
    """Grow the inventory, and change the largest while hits are asked; every second address that asks is in it."""
    directory.mkdir(parents=True, exist_ok=True)
    servers: list[Blockd] = []
    for count in counts:
        file = directory / f"devices-{count}.csv"
        with file.open("w", newline="") as out:
            rows = csv.writer(out)
            rows.writerow(["address", "hostname", "serial", "owner"])
            # The generator asks from 127.1.0.0 up: every second address is a device, the others are not.
            rows.writerows([f"127.{1 + (at >> 15)}.{at >> 7 & 255}.{at << 1 & 255}", "", "", ""] for at in range(count))
        kind = ChangingBlockd if count == counts[-1] else Blockd
        servers.append(kind(directory / str(count), nsd.port))
        servers[-1].devices = file
    try:
        for server in servers:
            server.start(patience=300)
            warm(server, load.hits())
        # From all devices' addresses and as many others: a lookup must not find its way still in the cache.
        sources = 2 * counts[-1]
        values = in_turn([asking(server, load.hits, sources=sources) for server in servers])
        changed = [counter(server, "blockd_devices_changed") for server in servers]
        if not changed[-1]:
            raise BenchmarkError("no device was changed while it was measured")
    finally:
        for server in servers:
            server.stop()
    figures = {str(count): {**values[at], "changed": changed[at]} for at, count in enumerate(counts)}
    say(f"devices: {figures}")
    return figures


class Lonely(Blockd):
    """blockd with no app but those of the measurement."""

    def values(self) -> dict[str, Any]:
        """Give the config."""
        values = super().values()
        values["apps"]["builtin"] = False
        values["policies"]["corporate"]["block"] = list(self.apps)
        return values


def apps(nsd: RealServer, directory: Path, counts: Sequence[int] = (1, 8, 64)) -> Figures:
    """Let more apps live: a hit and a blocked name by their number."""
    asks: list[Ask] = []
    with contextlib.ExitStack() as stack:
        for count in counts:
            server = Lonely(directory / f"apps{count}", nsd.port)
            server.apps = {f"site{at}": {"suffixes": [f"site{at}.invalid"]} for at in range(count - 1)}
            server.apps["blocked"] = {"suffixes": [BLOCKED]}
            stack.enter_context(running(server))
            warm(server, load.hits())
            asks += [asking(server, load.hits), asking(server, load.blocks)]
        values = in_turn(asks)
    figures = {str(count): hits_and_blocks(values, at) for at, count in enumerate(counts)}
    say(f"apps: {figures}")
    return figures


def waits(server: Server) -> int:
    """Count how often serve threads slept since there was nothing to read."""
    found = 0
    for thread in Path(f"/proc/{server.pid}/task").iterdir():
        text = (thread / "status").read_text()
        if "blockd-serve" in text.splitlines()[0]:
            found += int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)$", text, re.MULTILINE)[0])
    return found


def threads(nsd: RealServer, directory: Path) -> Figures:
    """Compare two serve threads on both cores with one on each of them: the second core is the generator's, too.

    A thread that shares its core with the generator is woken for fewer queries at a time, and a wake-up costs more than
    a query. So what two threads cost is held against what one thread costs on either core, and the waits are counted.
    """
    cores = {"one": SERVER_CORE, SHARED: LOAD_CORE, "two": f"{SERVER_CORE},{LOAD_CORE}"}
    servers = {name: Blockd(directory / name.split()[-1], nsd.port) for name in cores}
    figures: Figures = {}
    with contextlib.ExitStack() as stack:
        for name, server in servers.items():
            server.threads, server.cores = (2 if name == "two" else 1), cores[name]
            stack.enter_context(running(server))
            warm(server, load.hits())
        values = in_turn([asking(server, load.hits) for server in servers.values()])
        for (name, server), row in zip(servers.items(), values, strict=True):
            before = waits(server)
            report = again(lambda s=server: run(s, load.hits(), 2))  # type: ignore[misc]
            figures[name] = {**row, "waits_of_1000": 1_000 * (waits(server) - before) / report.answered}
    say(f"threads: {figures}")
    return figures


#: When a reload begins, seconds into the run, and how long the run is: rivals may need half a minute and more.
RELOAD_AT, RELOAD_RUN, RIVALS_RELOAD_RUN = 6, 24, 70


def reload_under_load(
    nsd: RealServer, directory: Path, rate: float, failed: dict[str, str] | None = None, count: int = 1_000_000
) -> Figures:
    """Reload a long list while hits and blocked names are asked at a rate: what is lost, and p99.9 beside before.

    A rival that cannot be measured has no figure and is named in `failed`; the others keep theirs.
    """
    listed = names(directory, count)
    figures = {Blockd.name: _reload(Blockd(directory, nsd.port, listed), rate, RELOAD_RUN)}
    for kind in (Unbound, Recursor):
        try:
            figures[kind.name] = _reload(kind(directory, nsd.port, listed), rate, RIVALS_RELOAD_RUN)
        except BenchmarkError as error:
            if failed is None:
                raise
            say(f"no figure for a reload of {kind.name} under load: {error}")
            failed[f"a reload of {kind.name} under load"] = str(error)
    return figures


def _reload(server: Server, rate: float, seconds: int) -> Figures:
    server.start(patience=300)
    try:
        warm(server, load.hits())
        took: list[tuple[float, float]] = []
        problems: list[str] = []
        begun = time.monotonic()

        def reload() -> None:
            time.sleep(RELOAD_AT)
            start = time.monotonic() - begun
            try:
                server.reload()
            except (BenchmarkError, OSError, KeyError, ValueError, subprocess.SubprocessError) as error:
                problems.append(f"{server.name} does not reload: {error!r}")
            took.append((start, time.monotonic() - begun))

        thread = threading.Thread(target=reload)
        thread.start()
        try:
            # Sockets enough for what a stall of a quarter of a second leaves open.
            asked = [*load.hits(), *load.blocks()]
            report = run(server, asked, seconds, rate, every=0.5, lossy=True, sockets=64)
        finally:
            thread.join()
        got = dns.query.udp(dns.message.make_query("one-more.invalid", "A"), "127.0.0.1", timeout=3, port=server.port)
        if int(got.rcode()) != 3 and not problems:
            problems.append(f"{server.name} does not block what its reload brought: {got}")
    finally:
        server.stop()
    if problems:
        raise BenchmarkError(problems[0])
    start, end = took[0]
    if end > seconds:
        raise BenchmarkError(f"{server.name}'s reload took longer than it was watched: {end - start:.0f} s")

    def middle_of(key: str, parts: list[dict[str, Any]]) -> float | str:
        answered = [part["latency_us"][key] for part in parts if part["answered"]]
        return float(statistics.median(answered)) if answered else "no answer"

    before = [part for part in report.parts if 1 < part["at"] < start]
    during = [part for part in report.parts if start < part["at"] < end + 0.5]
    figures = {
        "lost": report.lost + report.not_asked + report.failed,
        "wrong": report.wrong,
        **{f"{key} before": middle_of(key, before) for key in ("p50", "p99", "p99.9")},
        **{f"{key} during": middle_of(key, during) for key in ("p50", "p99", "p99.9")},
        # Of half seconds: the worst against the worst, for a stall is what a reload is feared for.
        "worst p99.9 before": max(part["latency_us"]["p99.9"] for part in before),
        "worst p99.9 during": max(part["latency_us"]["p99.9"] for part in during),
        "seconds": end - start,
        "rate": report.rate,
    }
    say(f"reload under load, {server.name}: {figures}")
    return figures


@contextlib.contextmanager
def held_down(pid: int, part: float) -> Iterator[None]:
    """Give a process a part of one core only, so that a generator on another core can offer more than it carries."""
    group = Path("/sys/fs/cgroup/cpu/blockd-bench")
    unified = Path("/sys/fs/cgroup/blockd-bench")
    try:
        if group.parent.is_dir():
            group.mkdir(exist_ok=True)
            (group / "cpu.cfs_period_us").write_text("10000")
            (group / "cpu.cfs_quota_us").write_text(str(int(10_000 * part)))
        else:
            group = unified
            group.mkdir(exist_ok=True)
            (group / "cpu.max").write_text(f"{int(10_000 * part)} 10000")
    except OSError as error:
        raise BenchmarkError(f"a control group for the CPU share is needed, as root: {error}") from None
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                (group / ("tasks" if (group / "tasks").exists() else "cgroup.procs")).write_text(task.name)
        yield
    finally:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                root = group.parent / ("tasks" if (group / "tasks").exists() else "cgroup.procs")
                root.write_text(task.name)
        for _ in range(50):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)


@contextlib.contextmanager
def silent(server: RealServer) -> Iterator[None]:
    """Have a server take questions and answer none."""
    assert server.process is not None
    pids = family(server.process.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def counter(server: Blockd, name: str) -> float:
    """Add up a metric over its labels."""
    with urlopen(f"http://127.0.0.1:{server.admin}/metrics", timeout=5) as reply:
        text = reply.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


#: Part of one core that a server has in :func:`overload`.
HELD_DOWN_CORES = 0.35


#: Seconds within which blockd answers whatever upstreams do, and a little more.
ANSWERED_SECONDS = 2.5


def overload(nsd: RealServer, directory: Path) -> Figures:
    """Offer twice what a held down server carries, a part of it names that nobody asked before.

    CannotLoadError when the generator is too slow to find the peak or to offer twice of it.
    """
    server = Blockd(directory / "overload", nsd.port)
    with running(server):
        warm(server, load.hits())
        easy = [*load.hits(), *load.blocks()]
        with held_down(server.pid, HELD_DOWN_CORES):
            # More questions under way than elsewhere: the server must not run out of them in its part of each 10 ms.
            full: dict[str, Any] = {"sockets": 64, "in_flight": 1_024}
            peak = peak_of(run(server, easy, 4, **full))
            # A second is what the most hasty of the usual clients wait. So many sockets that the questions open in that
            # time are more than the server's receive buffer holds.
            pressed: dict[str, Any] = {"lossy": True, "sockets": 1_024, "patience_ms": 1_000}
            loaded = run(server, easy, 6, 2 * peak, **pressed)
            hasty = run(server, easy, 4, 2 * peak, **{**pressed, "patience_ms": 100})
            before = pss(family(server.pid))
            # A tenth of that has to be asked upstream: first of one that is silent, then of one that answers.
            with silent(nsd):
                deaf = run(server, load.mixed(0.1), 6, 2 * peak, **pressed)
                # What that run gave up is answered with SERVFAIL within two seconds, and not to the next one.
                time.sleep(ANSWERED_SECONDS)
            shed = counter(server, "blockd_pending_shed_total")
            mixed_peak = peak_of(run(server, load.mixed(0.1), 4, is_unique=True, **full))
            mixed = run(server, load.mixed(0.1), 6, 2 * mixed_peak, **pressed)
            grown = pss(family(server.pid)) - before
            after = run(server, easy, 3, peak / 2, lossy=True)
        for report, rate in ((loaded, 2 * peak), (deaf, 2 * peak), (mixed, 2 * mixed_peak)):
            load.check_offered(report.offered, rate)
        figures = {
            "peak": peak,
            "offered": loaded.offered,
            "answered": loaded.rate,
            "lost": loaded.lost,
            "part_of_peak": loaded.part_of(peak),
            "part_within_100_ms": hasty.part_of(peak),
            "deaf_upstream": deaf.part_of(0.9 * peak),
            "shed": shed,
            "mixed_peak": mixed_peak,
            "mixed_part": mixed.part_of(mixed_peak),
            "not_read": counter(server, "blockd_queries_not_read_total"),
            "grown_mb": grown / 1e6,
            "lost_after": after.lost + after.not_asked + after.failed,
            "p99_after_us": after.latency["p99"],
        }
    say(f"overload: {figures}")
    return figures


def peak_of(report: Report) -> float:
    """Give the rate of a server that has :data:`HELD_DOWN_CORES`, if it used them all."""
    report.check_saturated(HELD_DOWN_CORES)
    return report.rate


def flood(nsd: RealServer, directory: Path) -> Figures:
    """One client asks names that nobody asked before as fast as it may, and beyond: what another client sees."""
    server = Blockd(directory / "flood", nsd.port)
    with running(server):
        warm(server, load.hits())
        # Both generators sleep when they have nothing to do, or each would wait for the other's share of their core.
        quiet: dict[str, Any] = {"sources": 1, "sockets": 1, "nap_us": 50}
        calm = [run(server, load.hits(), 4, 1_000, **quiet).latency["p99"] for _ in range(3)]
        busy = []
        with (server.directory / "flood").open("w") as file:
            file.write("\n".join(load.misses(300_000)) + "\n")
        for _ in range(3):
            # Two clients, 127.1.0.0 and .1, far over their limits: the calm one is 127.0.0.1.
            words = (
                "--seconds",
                6,
                "--sources",
                2,
                "--sockets",
                64,
                "--rate",
                20_000,
                "--nap-us",
                50,
                "--patience-ms",
                50,
            )
            process = load.start_load(server, Path(file.name), *words)
            time.sleep(1)
            busy.append(run(server, load.hits(), 4, 1_000, **quiet).latency["p99"])
            out, _ = process.communicate(timeout=60)
            flooded = json.loads(out.splitlines()[-1])
            if flooded["sent"] < 0.9 * 20_000 * 6:
                raise BenchmarkError(f"the flood was {flooded['sent']} questions only")
    figures = {"calm_us": statistics.median(calm), "busy_us": statistics.median(busy)}
    say(f"flood: {figures}")
    return figures


def environment() -> dict[str, str]:
    """Say which machine this is."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=False).stdout
    dirty = "-dirty" if changed.strip() else ""
    return {
        "cpu": f"{os.cpu_count()} cores of {model.group(1) if model else platform.machine()}",
        "kernel": f"Linux {platform.release().split('-')[0]}",
        "commit": (commit.stdout.strip() or "none") + dirty,
    }

"""Whether a change costs CPU: two builds, asked in turn. ``python -m benchmarks.compare --before TREE --after TREE``.

A tree is a checkout whose native module is built. Both daemons run at the same time on core 0, and the generator on
core 1 asks one after the other: hits, blocked names and misses, round by round, the order reversed in every other
round. Each round gives one ratio of CPU microseconds per answered query; the median of the ratios has a confidence
interval by order statistics, which assumes nothing about their distribution.

Ends with 0 if the upper end of each interval is at most 1.03, with 1 if a lower end is above it or there is no figure,
and with 3 if the machine is too noisy to decide.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import load, measure
from benchmarks.measure import KINDS, UNIQUE, say
from benchmarks.servers import BenchmarkError, Blockd, build_load
from tests.support.servers import Nsd

COMPARED = ("hits", "blocks", "misses")
#: Fewest rounds of a comparison that counts.
ROUNDS = 10
#: Largest ratio that is no loss.
BOUND = 1.03
CONFIDENCE = 0.95
SLOWER, NOISY = 1, 3


@dataclass(frozen=True)
class Interval:
    """The median of some ratios, and where the median of all such ratios is with 95 % confidence."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Interval:
        """Take the narrowest pair of order statistics that is sure enough. ValueError when they are too few for any."""
        ordered, count = sorted(ratios), len(ratios)
        # The median is below the k-th smallest with the chance of fewer than k heads in `count` throws of a coin.
        below, outside = 0, 0.0
        while True:
            outside += 2 * math.comb(count, below) / 2**count
            if outside > 1 - CONFIDENCE:
                break
            below += 1
        if below == 0:
            raise ValueError(f"{count} rounds are too few for an interval of {CONFIDENCE:.0%}: at least 6 are needed")
        return cls(statistics.median(ordered), ordered[below - 1], ordered[count - below])

    def verdict(self) -> str:
        """Say what it decides."""
        if self.high <= BOUND:
            return "pass"
        if self.low > BOUND:
            return "**slower**"
        return f"this machine is too noisy: {self.low:.3f} to {self.high:.3f} holds {BOUND:g}"


class Build(Blockd):
    """blockd as it is in one tree."""

    tree = Path()
    python = sys.executable

    def values(self) -> dict[str, Any]:
        """Give the config without what only newer builds know."""
        values = super().values()
        values["admin"].pop("metrics_max_age", None)
        return values

    def serve(self, file: Path) -> list[str]:
        """Run the tree's package, whatever the interpreter has installed."""
        return ["env", f"PYTHONPATH={self.tree}", self.python, "-P", "-m", "blockd", "serve", "--config", str(file)]

    def cpu_seconds(self) -> float:
        """Give the time of all threads: to the nanosecond, where the process has hundredths of a second."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def build(tree: Path, name: str, directory: Path, upstream: int) -> Build:
    """Prepare the daemon of a tree. BenchmarkError when the tree has none."""
    tree = tree.resolve()
    own = tree / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    command = [python, "-P", "-c", "from blockd.fastpath import _native; print(_native.__file__)"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True, check=False
    )
    if done.returncode or tree not in Path(done.stdout.strip()).parents:
        found = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise BenchmarkError(f"{tree} has no built blockd: run make there ({' '.join(found)})")
    kind = type("Build", (Build,), {"name": name, "tree": tree, "python": python})
    server: Build = kind(directory, upstream)
    return server


def ratios(servers: tuple[Build, Build], kinds: Sequence[str], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Ask both in turn; give the ratio of the second's cost to the first's, round by round."""
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(rounds):
        for kind in kinds:
            costs = {}
            for server in servers if turn % 2 else servers[::-1]:
                report = measure.again(
                    lambda s=server, k=kind: load.run(s, KINDS[k](), seconds, is_unique=k in UNIQUE)  # type: ignore[misc]
                )
                costs[server.name] = report.cpu_us
            found[kind].append(costs[servers[1].name] / costs[servers[0].name])
            say(f"round {turn + 1} {kind:7} {costs['before']:6.2f} µs before, {costs['after']:6.2f} µs after")
    return found


def table(found: dict[str, list[float]]) -> tuple[str, int]:
    """Write what was found, and give the exit code."""
    rows = ["| CPU after over before | median | 95 % interval | rounds | |", "| --- | --- | --- | --- | --- |"]
    code = 0
    for kind, values in found.items():
        interval = Interval.of(values)
        rows.append(
            f"| {kind} | {interval.median:.3f} | {interval.low:.3f} to {interval.high:.3f} | {len(values)} "
            f"| {interval.verdict()} |"
        )
        if interval.high > BOUND:
            code = SLOWER if interval.low > BOUND or code == SLOWER else NOISY
    return "\n".join(rows), code


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="TREE", help="the checkout to compare with")
    parser.add_argument("--after", type=Path, required=True, metavar="TREE", help="the checkout that is judged")
    parser.add_argument("--rounds", type=int, default=15, help=f"at least {ROUNDS} for a figure that counts (15)")
    parser.add_argument("--seconds", type=float, default=2, help="length of each measurement (2)")
    parser.add_argument("--kind", action="append", choices=COMPARED, help="one kind alone; may be repeated")
    options = parser.parse_args(arguments)
    if (os.cpu_count() or 1) < 2:
        say("two cores are needed: one for the servers, one for the load")
        return SLOWER
    try:
        Interval.of([1.0] * options.rounds)
        build_load()
        with tempfile.TemporaryDirectory() as scratch, Nsd(Path(scratch) / "nsd", measure.ZONES) as nsd:
            directory = Path(scratch)
            servers = (
                build(options.before, "before", directory, nsd.port),
                build(options.after, "after", directory, nsd.port),
            )
            with contextlib.ExitStack() as stack:
                for server in servers:
                    stack.enter_context(measure.running(server))
                    measure.warm(server, load.hits())
                found = ratios(servers, options.kind or COMPARED, options.rounds, options.seconds)
    except (BenchmarkError, ValueError) as error:
        say(f"no figure: {error}")
        return SLOWER
    text, code = table(found)
    print(text)
    if options.rounds < ROUNDS:
        print(f"{options.rounds} rounds are fewer than {ROUNDS}: this is a trial, not a figure")
    return code


if __name__ == "__main__":
    raise SystemExit(main())

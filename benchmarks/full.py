"""Every goal beside what was measured, in one run: ``make bench-full``. ``make bench`` takes two parts of it.

Each server is pinned to core 0 and the load generator to core 1. CPU is the server process's user and system time from
/proc over the answers received. Rounds go in turn over the servers; figures are medians. A wrong answer, a lost one
where none may be lost, a ratio that cannot be, a rival that is missing: the run says so and ends with 1, and writes
nothing for it. Where the generator cannot load a server the page says that, has no figure, and the run ends with 0.

Whether a change costs CPU is a question for ``benchmarks.compare``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from benchmarks import load, measure, report
from benchmarks.measure import Figures, median, say
from benchmarks.servers import ALL, BenchmarkError, Blockd, Dnsdist, Unbound, build_load
from tests.support.servers import Nsd, RealServer


def short(nsd: RealServer, directory: Path) -> Figures:
    """Peak and a tenth beside all rivals, two short rounds, and dnsperf's own figure."""
    figures = both_loads(nsd, directory, rounds=2, seconds=2)
    servers = [kind(directory / "dnsperf", nsd.port) for kind in (Blockd, Unbound, Dnsdist)]
    rates = {}
    for server in servers:
        with measure.running(server):
            measure.warm(server, load.hits())
            rates[server.name] = load.dnsperf(server, load.hits(), 3)
            say(f"dnsperf {server.name:10} {rates[server.name]:9.0f}/s")
    return {**figures, "dnsperf": rates}


def both_loads(nsd: RealServer, directory: Path, rounds: int, seconds: float) -> Figures:
    """Compare at peak, with misses last for they fill the caches, and at a tenth of the best rival's peak."""
    versions = {kind.name: kind(directory / "versions", nsd.port).version() for kind in ALL}
    servers = [kind(directory / "peak", nsd.port) for kind in ALL]
    peak = measure.compare(servers, ["hits", measure.MANY, "random subdomains", "blocks"], rounds, seconds)
    servers = [kind(directory / "misses", nsd.port) for kind in ALL[:-1]]
    peak |= measure.compare(servers, ["misses"], rounds, seconds)
    rate = max(median(rows, "rate") for name, rows in peak["hits"].items() if name in report.RIVALS)
    servers = [kind(directory / "tenth", nsd.port) for kind in ALL]
    tenth = measure.compare(servers, ["hits", "blocks"], 2, seconds, rate / 10)
    return {"versions": versions, "peak": peak, "tenth": tenth, "half_rate": rate / 2}


def full(nsd: RealServer, directory: Path) -> Figures:
    """Everything."""
    figures = {**both_loads(nsd, directory, rounds=3, seconds=2), "failed": {}, "not_loaded": {}}
    return measure_parts(figures, nsd, directory)


def again(nsd: RealServer, directory: Path, names: Collection[str]) -> Figures:
    """Measure parts of the newest full run anew. BenchmarkError when that run was of another build."""
    figures: Figures = json.loads((report.RESULTS / "full.json").read_text())
    commit = figures["about"]["commit"]
    same = subprocess.run(["git", "diff", "--quiet", commit, "--", "blockd"], capture_output=True, check=False)
    if same.returncode:
        raise BenchmarkError(f"the newest full run is of {commit}, and blockd is another now: measure everything")
    for name in names:
        figures["failed"].pop(name, None)
        figures["not_loaded"].pop(name, None)
    return {**measure_parts(figures, nsd, directory, names), "versions": figures["about"]["versions"]}


def measure_parts(figures: Figures, nsd: RealServer, directory: Path, names: Collection[str] = ()) -> Figures:
    """Add the parts beside peak and a tenth of it; with names, those alone."""
    half_rate = figures["half_rate"]
    parts: dict[str, Callable[[RealServer, Path], Figures]] = {
        "half": lambda nsd, where: measure.half_load(nsd, where, half_rate),
        "half_many": lambda nsd, where: measure.half_load(nsd, where, half_rate, load.MANY_SOCKETS),
        "threads": measure.threads,
        "shapes": measure.shapes,
        "million_cached": measure.million_cached,
        "apps": measure.apps,
        "devices": measure.devices,
        "flood": measure.flood,
        "overload": measure.overload,
        "loading": measure.loading,
        "rules": measure.rules,
        "memory": measure.memory,
        "reload_under_load": lambda nsd, where: measure.reload_under_load(nsd, where, half_rate, figures["failed"]),
    }
    for name, part in parts.items():
        if names and name not in names:
            continue
        try:
            figures[name] = part(nsd, directory / name)
        except load.CannotLoadError as error:
            say(f"no figure for {name}: {error}")
            figures["not_loaded"][name] = str(error)
        except BenchmarkError as error:
            # The other questions have their answers all the same; the page says which has none, and the run fails.
            say(f"no figure for {name}: {error}")
            figures["failed"][name] = str(error)
    return figures


def main() -> int:
    """Measure and write; 1 and no figure when anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="peak and a tenth alone, in a few minutes")
    parser.add_argument("--only", help="one part by its name; prints, and writes nothing")
    parser.add_argument(
        "--again", action="append", metavar="PART", help="measure a part of the newest full run anew; may be repeated"
    )
    parser.add_argument("--print", action="store_true", help="print only, write no file")
    arguments = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        say("two cores are needed: one for the server, one for the load")
        return 1
    try:
        build_load()
        with tempfile.TemporaryDirectory() as scratch, Nsd(Path(scratch) / "nsd", measure.ZONES) as nsd:
            directory = Path(scratch)
            if arguments.only:
                print(json.dumps(getattr(measure, arguments.only)(nsd, directory / arguments.only), indent=1))
                return 0
            if arguments.again:
                figures = again(nsd, directory, arguments.again)
            else:
                figures = short(nsd, directory) if arguments.short else full(nsd, directory)
    except BenchmarkError as error:
        say(f"no figure: {error}")
        return 1
    versions = figures.pop("versions")
    before = figures.get("about", {})
    kept = {"commit": before["commit"]} if before else {}
    figures["about"] = {**measure.environment(), **kept, "date": report.today(), "versions": versions}
    figures["about"]["taken_anew"] = [*before.get("taken_anew", []), *measure.taken_anew]
    text = report.page(figures)
    print(text)
    if not arguments.print:
        name = "table" if arguments.short else "full"
        report.RESULTS.mkdir(exist_ok=True)
        (report.RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
        (report.RESULTS / f"{name}.md").write_text(text)
        if not arguments.short:
            report.plots(figures, report.RESULTS)
    return 1 if figures.get("failed") else 0


if __name__ == "__main__":
    raise SystemExit(main())

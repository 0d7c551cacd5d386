"""From figures to pages: the goals with pass or short, the tables with ratios first, the plots."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import LOADED, MANY_SOCKETS
from benchmarks.measure import SHARED, Figures, median, spread
from benchmarks.servers import ALL

RESULTS = Path(__file__).parent / "results"
RESOLVERS = [kind.name for kind in ALL if kind.is_resolver and kind.name != "blockd"]
#: Parts at half load, and the sockets that they ask from where these are not the usual ones.
HALVES = {"half": "", "half_many": f", {MANY_SOCKETS:,} client sockets"}
#: Who answers hits and blocked names: a proxy with a cache and a suffix rule is a rival there too.
RIVALS = [*RESOLVERS, "dnsdist"]


@dataclass(frozen=True)
class Goal:
    """One line of what is wanted: a figure and the most, or least, that it may be."""

    what: str
    value: float
    bound: float
    unit: str = "x"
    is_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it holds, as printed."""
        value = round(self.value, 2)
        return value >= self.bound if self.is_least else value <= self.bound

    def row(self) -> str:
        """Give its line of the table."""
        sign = "at least" if self.is_least else "at most"
        off = "pass" if self.is_met else "**short**"
        if not self.is_met and self.bound:
            off += f" by {abs(self.value - self.bound) / self.bound:.0%}"
        return f"| {self.what} | {sign} {self.bound:g} {self.unit} | {self.value:.2f} {self.unit} | {off} |"


def best(figures: dict[str, list[dict[str, float]]], names: Sequence[str], key: str = "cpu_us") -> tuple[str, float]:
    """Find the rival with the least."""
    present = [(median(rows, key), name) for name, rows in figures.items() if name in names]
    value, name = min(present)
    return name, value


def goals(all_figures: Figures) -> list[Goal]:
    """Hold every goal against what was measured; a part that was not run has no line."""
    wanted: list[Goal] = []
    peak = all_figures.get("peak")
    if peak:
        for kind in ("hits", "blocks"):
            rival, value = best(peak[kind], RIVALS)
            ours = median(peak[kind]["blockd"])
            wanted.append(Goal(f"{kind} at peak, CPU over the best rival's ({rival})", ours / value, 0.55))
            floor = median(peak[kind]["bare loop"])
            wanted.append(Goal(f"{kind} at peak, CPU over the bare loop's", ours / floor, 1.2))
        ratio = median(peak["random subdomains"]["blockd"]) / median(peak["hits"]["blockd"])
        wanted.append(Goal("random subdomains of a blocked name, over a hit", ratio, 1.2))
        ours = median(peak["misses"]["blockd"])
        for name, bound in (("dnsdist", 0.9), ("Unbound", 0.35)):
            if name in peak["misses"]:
                ratio = ours / median(peak["misses"][name])
                wanted.append(Goal(f"misses, CPU over {name}'s", ratio, bound))
    tenth = all_figures.get("tenth")
    if tenth:
        for kind in ("hits", "blocks"):
            rival, value = best(tenth[kind], RIVALS)
            ratio = median(tenth[kind]["blockd"]) / value
            wanted.append(Goal(f"{kind} at a tenth of peak, CPU over the best rival's ({rival})", ratio, 0.9))
    if million := all_figures.get("million_cached"):
        wanted.append(
            Goal("hits over 1,000,000 cached names, over 5,000", million["many"]["peak"] / million["few"]["peak"], 1.25)
        )
    if rules := all_figures.get("rules"):
        sizes = sorted(rules, key=int)
        for part, bound in (("hit", 1.2), ("block", 1.5)):
            ratio = max(rules[size][part] for size in sizes) / rules[sizes[0]][part]
            what = "hits" if part == "hit" else "blocked names"
            wanted.append(Goal(f"{what}, {int(sizes[-1]):,} rules over {int(sizes[0]):,}", ratio, bound))
    if devices := all_figures.get("devices"):
        sizes = sorted(devices, key=int)
        ratio = devices[sizes[-1]]["peak"] / devices[sizes[0]]["peak"]
        what = f"hits, {int(sizes[-1]):,} device prefixes over {int(sizes[0]):,}, 1,000 changes a second"
        wanted.append(Goal(what, ratio, 1.3))
    if memory := all_figures.get("memory"):
        for size, row in sorted(memory.items(), key=lambda item: int(item[0])):
            text = f"{int(size):,} names"
            wanted.append(Goal(f"memory, {text}, loaded", row["octets_a_name"], 24, "octets a name"))
            wanted.append(Goal(f"memory, {text}, after a reload", row["octets_a_name_after"], 24, "octets a name"))
            wanted.append(Goal(f"memory, {text}, most during a reload over loaded", row["peak"], 2))
    if loading := all_figures.get("loading"):
        ratio = loading["blockd"] / loading["Recursor"]
        wanted.append(Goal("loading 1,000,000 names, over PowerDNS Recursor's time", ratio, 0.5))
        wanted.append(Goal("loading 1,000,000 names, one core", loading["blockd"], 1.0, "s"))
    if reload := all_figures.get("reload_under_load"):
        ours = reload["blockd"]
        wanted.append(Goal("reload of 1,000,000 names under load, lost or wrong", ours["lost"] + ours["wrong"], 0, ""))
        ratio = ours["worst p99.9 during"] / ours["worst p99.9 before"]
        what = "reload of 1,000,000 names under load, the worst half second's p99.9 over the worst before"
        wanted.append(Goal(what, ratio, 2))
    for part, sockets in HALVES.items():
        for key in ("p50", "p99") if part in all_figures else ():
            half = all_figures[part]["hits"]
            rival, value = best(half, RIVALS, key)
            what = f"{key} at half load{sockets}, over the best rival's ({rival})"
            wanted.append(Goal(what, median(half["blockd"], key) / value, 1.0))
    if threads := all_figures.get("threads"):
        # Half of what two threads do is done on the generator's core.
        one = statistics.mean(threads[name]["peak"] for name in ("one", SHARED) if name in threads)
        wanted.append(Goal("two threads, CPU over one thread's on the same cores", threads["two"]["peak"] / one, 1.1))
    if overload := all_figures.get("overload"):
        part = overload["part_of_peak"]
        wanted.append(Goal("overload, answered of peak when twice as much is offered", part, 0.9, "x", True))
        part = overload["deaf_upstream"]
        what = "overload with a tenth of misses and a silent upstream, answered of what else is asked"
        wanted.append(Goal(what, part, 0.9, "x", True))
        wanted.append(Goal("overload with a tenth of misses, answered of peak", overload["mixed_part"], 0.9, "x", True))
        wanted.append(Goal("overload, memory that it takes", overload["grown_mb"], 50, "MB"))
        wanted.append(Goal("overload, lost when it is over", overload["lost_after"], 0, ""))
    if flood := all_figures.get("flood"):
        ratio = flood["busy_us"] / flood["calm_us"]
        wanted.append(Goal("a flood of unique names, another client's p99 over before", ratio, 2))
    return wanted


def head(all_figures: Figures) -> list[str]:
    """Say on which machine and when, and with which versions."""
    about = all_figures["about"]
    versions = ", ".join(version for name, version in about["versions"].items() if name != "bare loop")
    anew = about.get("taken_anew", [])
    again = f" {len(anew)} runs lost queries and were taken anew: {'; '.join(anew)}." if anew else ""
    return [f"{about['date']}, {about['cpu']}, {about['kernel']}, commit {about['commit']}. {versions}.{again}", ""]


def comparison(figures: dict[str, dict[str, list[dict[str, float]]]], title: str) -> list[str]:
    """Write a table of CPU a query: ratios first, then microseconds with their spread."""
    kinds = [kind for kind in figures if kind != "random subdomains"]
    names = [name for name in figures["hits"] if name != "blockd"]
    rows = [f"## {title}", "", "| blockd's CPU over | " + " | ".join(kinds) + " |", "| --- " * (len(kinds) + 1) + "|"]
    for name in names:
        cells = [
            f"{median(figures[kind]['blockd']) / median(figures[kind][name]):.2f}" if figures[kind].get(name) else "-"
            for kind in kinds
        ]
        rows.append(f"| {name}'s | " + " | ".join(cells) + " |")
    rows += ["", "| CPU µs a query: median (least to most) | " + " | ".join(kinds) + " |"]
    rows += ["| --- " * (len(kinds) + 1) + "|"]
    for name in ["blockd", *names]:
        cells = []
        for kind in kinds:
            if not figures[kind].get(name):
                cells.append("-")
                continue
            least, most = spread(figures[kind][name])
            cells.append(f"{median(figures[kind][name]):.2f} ({least:.2f} to {most:.2f})")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*rows, ""]


def rates(figures: dict[str, dict[str, list[dict[str, float]]]]) -> list[str]:
    """Write a table of answers a second; a server that was not busy all the time could have answered more."""

    def rate(rows: list[dict[str, float]]) -> str:
        is_peak = all(row.get("cores", 1) >= LOADED[1] for row in rows)
        return f"{'' if is_peak else 'at least '}{median(rows, 'rate'):,.0f}"

    kinds = list(figures)
    rows = ["| answers a second, one core | " + " | ".join(kinds) + " |", "| --- " * (len(kinds) + 1) + "|"]
    for name in figures["hits"]:
        cells = [rate(figures[k][name]) if figures[k].get(name) else "-" for k in kinds]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*rows, ""]


def latencies(figures: dict[str, list[dict[str, float]]], rate: float, sockets: str) -> list[str]:
    """Write a table of latencies at one rate."""
    rows = [f"## Latency at half of the best rival's peak: {rate:,.0f} hits a second{sockets}", ""]
    rows += ["| µs | p50 | p99 | p99.9 | lost queries |", "| --- | --- | --- | --- | --- |"]
    for name, measured in figures.items():
        cells = " | ".join(f"{median(measured, key):,.0f}" for key in ("p50", "p99", "p99.9"))
        rows.append(f"| {name} | {cells} | {sum(row.get('lost', 0) for row in measured):,.0f} |")
    return [*rows, ""]


def page(all_figures: Figures) -> str:
    """Write the whole page."""
    rows = ["# What was measured", "", "`make bench-full` writes this page; docs/growth.md says what it means.", ""]
    rows += head(all_figures)
    rows += ["| goal | wanted | measured | |", "| --- | --- | --- | --- |"]
    rows += [goal.row() for goal in goals(all_figures)] + [""]
    for name, why in (all_figures.get("failed", {}) | all_figures.get("not_loaded", {})).items():
        rows += [f"No figure for {name.replace('_', ' ')}: {why}", ""]
    for key, title in (("peak", "At peak"), ("tenth", "At a tenth of the best rival's peak")):
        if key in all_figures:
            rows += comparison(all_figures[key], title)
    if rates_of := all_figures.get("dnsperf"):
        rows += ["| hits a second by dnsperf, which is the limit itself | |", "| --- | --- |"]
        rows += [f"| {name} | {rate:,.0f} |" for name, rate in rates_of.items()] + [""]
    if "peak" in all_figures:
        rows += rates(all_figures["peak"])
    for part, sockets in HALVES.items():
        if part in all_figures:
            rows += latencies(all_figures[part]["hits"], all_figures["half_rate"], sockets)
    for key in ("shapes", "million_cached", "rules", "devices", "apps", "memory", "loading"):
        if key in all_figures:
            rows += [f"## {key.replace('_', ' ').capitalize()}", "", *_plain(all_figures[key])]
    for key in ("reload_under_load", "threads", "overload", "flood"):
        if key in all_figures:
            rows += [f"## {key.replace('_', ' ').capitalize()}", "", *_plain(all_figures[key])]
    return "\n".join(rows)


def _number(value: Any) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _label(text: str) -> str:
    return f"{int(text):,}" if text.isdigit() else text.replace("_", " ")


def _plain(figures: Figures) -> list[str]:
    first = next(iter(figures.values()))
    if isinstance(first, dict):
        rows = ["| | " + " | ".join(_label(key) for key in first) + " |", "| --- " * (len(first) + 1) + "|"]
        rows += [
            f"| {_label(name)} | " + " | ".join(map(_number, row.values())) + " |" for name, row in figures.items()
        ]
    else:
        rows = ["| | |", "| --- | --- |"] + [f"| {_label(k)} | {_number(v)} |" for k, v in figures.items()]
    return [*rows, ""]


def plots(all_figures: Figures, directory: Path) -> None:
    """Draw CPU a query by server, and how it grows."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "blockd"
    from matplotlib import pyplot

    def save(name: str) -> None:
        pyplot.tight_layout()
        # No date inside: the page beside it has one.
        pyplot.savefig(directory / name, metadata={"Date": None, "Creator": None})
        pyplot.close()

    if peak := all_figures.get("peak"):
        _, axes = pyplot.subplots(1, 3, figsize=(10, 3.2))
        for axis, kind in zip(axes, ("hits", "blocks", "misses"), strict=True):
            rows = sorted(((median(r), n) for n, r in peak[kind].items() if r), reverse=True)
            colours = ["#1f6f8b" if name == "blockd" else "#bbbbbb" for _, name in rows]
            bars = axis.barh([name for _, name in rows], [value for value, _ in rows], color=colours)
            axis.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
            axis.set_title(f"{kind}: CPU µs a query", fontsize=9)
            axis.tick_params(labelsize=7)
            axis.margins(x=0.15)
            axis.spines[["top", "right"]].set_visible(False)
        save("peak.svg")
    lines: list[tuple[str, list[tuple[float, float]]]] = []
    if rules := all_figures.get("rules"):
        lines.append(("names in lists: a hit", [(int(n), row["hit"]) for n, row in rules.items()]))
        lines.append(("names in lists: blocked", [(int(n), row["block"]) for n, row in rules.items()]))
    if devices := all_figures.get("devices"):
        lines.append(("devices: a hit", [(int(n), row["peak"]) for n, row in devices.items()]))
    if million := all_figures.get("million_cached"):
        lines.append(("cached names: a hit", [(5_000, million["few"]["peak"]), (1_000_000, million["many"]["peak"])]))
    if threads := all_figures.get("threads"):
        lines.append(("cores: a hit", [(1, threads["one"]["peak"]), (2, threads["two"]["peak"])]))
    if apps := all_figures.get("apps"):
        lines.append(("live apps: blocked", [(int(n), row["block"]) for n, row in apps.items()]))
    if lines:
        _, axis = pyplot.subplots(figsize=(7, 3.6))
        for label, points in lines:
            axis.plot([x for x, _ in points], [y for _, y in points], marker="o", label=label)
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("how many", fontsize=8)
        axis.set_ylabel("CPU µs a query", fontsize=8)
        axis.legend(fontsize=7, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
        save("growth.svg")
    if shapes := all_figures.get("shapes"):
        points = [(float(k.split("%")[0]), v["peak"]) for k, v in shapes.items() if k.endswith("misses")]
        _, axis = pyplot.subplots(figsize=(5, 3))
        axis.plot([x for x, _ in points], [y for _, y in points], marker="o", color="#1f6f8b")
        axis.set_xlabel("misses, %", fontsize=8)
        axis.set_ylabel("CPU µs a query", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        save("misses.svg")


def today() -> str:
    """Give the date for the page."""
    return datetime.date.today().isoformat()


def summary(all_figures: Figures) -> list[str]:
    """Give the rows that README quotes: blockd's CPU over each server's, at peak."""
    peak = all_figures["peak"]
    rows = []
    for name in ("Unbound", "Recursor", "dnsdist", "dnsmasq", "Knot Resolver", "BIND", "bare loop"):
        cells = [
            f"{median(peak[kind]['blockd']) / median(peak[kind][name]):.2f}" if peak[kind].get(name) else "-"
            for kind in ("hits", "blocks", "misses")
        ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows

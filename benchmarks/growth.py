"""Writes docs/growth.md and README's table from what ``make bench-full`` measured: ``python -m benchmarks.growth``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks import report
from benchmarks.load import MANY_SOCKETS
from benchmarks.measure import Figures, median

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "growth.md"
README = ROOT / "README.md"

#: Beginning of a goal -> why it may be short, and what was tried.
REASONS = {
    "hits at peak, CPU over the best": (
        "The bare loop, with no features at all, stands at {loop:.2f} of the best rival here: nine tenths of a hit are the "
        "kernel's, for blockd and for its rivals. On the machine where the goal was set the loop stood at 0.48. Tried: "
        "decision 10, from the cache to the buffers, and GSO and io_uring below the loop."
    ),
    "blocks at peak, CPU over the best": (
        "As with hits; besides, a block writes the log and counts by group and app, for which the rivals have nothing on."
    ),
    "hits at peak, CPU over the bare": ("What is left above the loop: admission, decision, log and counters."),
    "blocks at peak, CPU over the bare": "What is left above the loop: admission, decision, log and counters.",
    "random subdomains": "Each is a name that was never seen, hashed label by label, and a new line in the log's table.",
    "misses, CPU over dnsdist": (
        "dnsdist is a proxy that keeps 16 ports and counts its IDs up; blockd re-encodes each answer, judges all that it "
        "leads to, draws IDs and ports at random and coalesces. Tried: groups of 8 questions a socket (15.9 to 12.2 µs), "
        "groups of 32, another allocator."
    ),
    "misses, CPU over Unbound": "As with dnsdist's.",
    "hits at a tenth": (
        "A wake-up of the processor costs some 10 µs here, whoever is woken: the bare loop stands at {loop_tenth:.2f} of the "
        "best rival. Naps that gather queries take the bare loop further down, and cost latency (decision 10)."
    ),
    "blocks at a tenth": "As with hits at a tenth of peak.",
    "hits, 10,000,000 rules": "A hit looks nothing up in the table; three daemons share the processor's cache.",
    "blocked names, 10,000,000 rules": "A lookup in 133 MB waits for memory once; prefetching hides a part of it.",
    "hits, 1,000,000 device": "A lookup in 8 MB of ranges waits for memory some twenty times less often than it steps.",
    "hits over 1,000,000 cached": "An entry, its place and its octets are three cache misses, prefetched in three steps.",
    "memory, 1,000,000 names, most": "The compile is a process of its own, of which 45 MB are Python's.",
    "memory, 10,000,000 names, most": "The compile is a process of its own, which holds ten octets a name and then the table.",
    "loading 1,000,000 names, over": (
        "blockd starts a Python process that reads, checks and keeps all inputs on disk before it publishes; a third of the "
        "time is that. Tried: decision 10; 2.2 s came down to what is measured here."
    ),
    "loading 1,000,000 names, one core": (
        "A third of it is the start of Python and its imports; it moves with the machine, on which Recursor needed "
        "{recursor:.1f} s in the same run."
    ),
    "reload of 1,000,000 names under load, the worst": (
        "The daemon is pinned to one core for the measurement, its compile with it. Tried: a lower priority for the compile "
        "and for Python's threads (decision 10), before which it was twenty times and more. What is left are system calls of "
        "the compile that hold the core for some milliseconds; with a core to spare they do not matter."
    ),
    "p50 at half": "The same sockets at the same rate: it moves around 1 from run to run.",
    "p99 at half": (
        "It moves by a factor of three from run to run, for rivals as for blockd: the machine's neighbours. Tried: a lower "
        "priority for Python's threads."
    ),
    "two threads": (
        "The generator has one of the two cores, and a thread that shares it is woken for one or two queries at a time: one "
        "thread alone costs 1.7 times as much there, with 640 waits per 1,000 answers, as on its own core, with 1. Two "
        "threads on one core cost 1.04 of one, and with 1,024 queries in flight one thread costs the same on either core. "
        "Each wait costs about what a query does; that is all that two threads cost more, and nothing that they share."
    ),
    "overload, answered": (
        "What counts is an answer within a second, the patience of the most hasty of the usual clients; within 100 ms it is "
        "{hasty:.2f}, for a full receive buffer is longer than that on a third of a core."
    ),
    "overload with": "Misses are shed when half of the receive buffer is used, which is after some were asked.",
    "overload, lost": "Nothing is known to make this so.",
    "a flood": "Both generators share one core.",
}


def _reason(what: str, figures: Figures) -> str:
    peak, tenth = figures["peak"], figures["tenth"]
    values = {
        "loop": median(peak["hits"]["bare loop"]) / report.best(peak["hits"], report.RIVALS)[1],
        "loop_tenth": median(tenth["hits"]["bare loop"]) / report.best(tenth["hits"], report.RIVALS)[1],
        "recursor": figures.get("loading", {}).get("Recursor", 0.0),
        "hasty": figures.get("overload", {}).get("part_within_100_ms", 0.0),
    }
    for beginning, text in REASONS.items():
        if what.startswith(beginning):
            return text.format(**values)
    return "No reason is known; nothing was tried."


def _short(figures: Figures) -> list[str]:
    rows = ["| goal | measured | why, and what was tried |", "| --- | --- | --- |"]
    for goal in report.goals(figures):
        if not goal.is_met:
            sign = "at least " if goal.is_least else ""
            off = f" ({abs(goal.value - goal.bound) / goal.bound:.0%} off)" if goal.bound else ""
            rows.append(
                f"| {goal.what} | {goal.value:.2f}, wanted {sign}{goal.bound:g}{off} | {_reason(goal.what, figures)} |"
            )
    return rows if len(rows) > 2 else ["Every goal is reached."]


def page(figures: Figures) -> str:
    """Write docs/growth.md."""
    peak, rules = figures["peak"], figures["rules"]
    shapes = {way: row["peak"] for way, row in figures["shapes"].items()}
    sizes = sorted(rules, key=int)
    few, many = sizes[0], sizes[-1]
    devices = sorted(figures["devices"], key=int)
    apps = sorted(figures["apps"], key=int)
    memory = figures["memory"]
    million, ten = memory["1000000"], memory["10000000"]
    at_ten = shapes["10% misses"]
    cores = 110_000 * at_ten / 1e6
    threads = {key: row["peak"] for key, row in figures["threads"].items()}
    cached = {key: row["peak"] for key, row in figures["million_cached"].items()}
    first, last = figures["apps"][apps[0]], figures["apps"][apps[-1]]
    rows = [
        ("cores (serve threads)", "1", "2", f"a hit {threads['one']:.2f} → {threads['two']:.2f}"),
        (
            "names in lists",
            f"{int(few):,}",
            f"{int(many):,}",
            f"a hit {rules[few]['hit']:.2f} → {rules[many]['hit']:.2f}; "
            f"blocked {rules[few]['block']:.2f} → {rules[many]['block']:.2f}",
        ),
        (
            "devices, the most with 1,000 changes a second",
            f"{int(devices[0]):,}",
            f"{int(devices[-1]):,}",
            f"a hit {figures['devices'][devices[0]]['peak']:.2f} → {figures['devices'][devices[-1]]['peak']:.2f}",
        ),
        ("cached names (Zipf)", "5,000", "1,000,000", f"a hit {cached['few']:.2f} → {cached['many']:.2f}"),
        (
            "live apps",
            apps[0],
            apps[-1],
            f"a hit {first['hit']:.2f} → {last['hit']:.2f}; blocked {first['block']:.2f} → {last['block']:.2f}",
        ),
        (
            "part of misses",
            "0 %",
            "30 %",
            f"{shapes['0% misses']:.2f} → {shapes['30% misses']:.2f}; at 1 % {shapes['1% misses']:.2f}, "
            f"at 10 % {at_ten:.2f}; a miss alone {median(peak['misses']['blockd']):.1f}",
        ),
        ("answers of 300 octets", "none", "half", f"a hit {shapes['plain']:.2f} → {shapes['mixed sizes']:.2f}"),
        ("EDNS", "without", "with", f"a hit {shapes['plain']:.2f} → {shapes['EDNS']:.2f}"),
        *(
            ("client sockets", "16", count, f"a hit {shapes['plain']:.2f} → {shapes[f'{count} sockets']:.2f}")
            for count in ("64", f"{MANY_SOCKETS:,}")
            if f"{count} sockets" in shapes
        ),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    short = "\n".join(_short(figures))
    return f"""# How cost grows

What a query costs, by what a site has more of. `python -m benchmarks.growth` writes this page from one run of
`make bench-full` ([benchmarks/results/full.md](../benchmarks/results/full.md), with machine, versions and all goals): CPU
microseconds a query of one serve thread at peak, over loopback UDP, in the shipped configuration; that page has a tenth of
peak beside each. They move by a tenth from run to run; ratios of one run move less.

| what grows | from | to | CPU µs a query |
| --- | --- | --- | --- |
{table}

![CPU a query by number of cores, names, devices, cached names and apps](../benchmarks/results/growth.svg)
![CPU a query by part of misses](../benchmarks/results/misses.svg)

Memory: {million["octets_a_name"]:.1f} octets a name at 1,000,000 names and {ten["octets_a_name"]:.1f} at 10,000,000, over
{million["bare_mb"]:.0f} MB of a process with an empty list; a reload takes at its most {million["peak_mb"]:.0f} MB and
{ten["peak_mb"]:.0f} MB in all processes. The cache takes what `cache.size_mb` says, 287 octets an entry of one short
answer; a device that is a single address two ranges of 8 octets (IPv4) or of 20 (IPv6).

## A site of 1,000,000 devices

A reckoning, not a measurement. At 40 queries a device and hour in the mean and ten times that at the peak hour's worst minute it
asks 110,000 a second. At 10 % misses that is {at_ten:.1f} µs each: {cores:.1f} cores of this machine at that
minute, and a tenth of it in the mean. Two machines of four cores each, with 8 GB, answer it with one of them down. One million
entries of cache are 287 MB; one million devices as single addresses are 16 MB, but reading their inventory takes the compile
some 1.5 GB and half a minute more; the log of a minute holds 65,536 kinds, and counts what it has no room for.

## What does not reach its goal

{short}

What was tried and measured on the way, taken or not, is in [decision 10](decisions/0010-speed.md).

## Run it

`make bench` compares blockd with Unbound, PowerDNS Recursor, dnsdist, dnsmasq, Knot Resolver and BIND in some minutes, and
`make bench-full` measures every goal in half an hour; both install what they need when run as root, and want two cores
that have nothing else to do. `python -m benchmarks.full --only rules` asks one question alone.

`python -m benchmarks.compare --before TREE --after TREE` says whether a change costs CPU: two checkouts, both built, asked for
hits, blocks and misses in interleaved rounds. It ends with 0 if the upper end of the 95 % interval of each median ratio is at
most 1.03, with 1 if a change is slower, and with 3 if the machine is too noisy to decide.
"""


def readme(figures: Figures, text: str) -> str:
    """Put the rows of README's table in place of those that are there."""
    rows = "\n".join(report.summary(figures))
    return re.sub(r"(\| \| hits \| blocks \| misses \|\n\|[-| ]+\|\n)(?:\|.*\n)+", rf"\g<1>{rows}\n", text)


def main() -> int:
    """Write both."""
    figures = json.loads((report.RESULTS / "full.json").read_text())
    PAGE.write_text(page(figures))
    README.write_text(readme(figures, README.read_text()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Runs the text scenarios beside this file: cache, chain and view behaviour, against the running daemon.

A line is one step:

- ``upstream: RECORD`` adds a record that the scripted upstream has; ``upstream forget NAME`` takes its records away.
- ``CLIENT asks NAME TYPE [+do] [+cd] [+tcp] [+nord]: RCODE [RECORD | ...]`` asks and compares rcode and answer.
- ``upstream was asked: NAME ...`` compares all names asked since the last such line, in order.
- ``zone NAME: RECORD`` gives that zone servers of its own (``upstream.zones``), which have the record; the first such
  line of a zone reloads. ``zone NAME was asked: NAME TYPE ...`` is about these servers, and ``general servers were
  asked: NAME TYPE ...`` about all others.
- ``wait SECONDS``; ``policy GROUP: YAML``, ``cache: YAML`` and ``app NAME: YAML`` change that and reload.
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from pathlib import Path

import dns.flags
import pytest
import yaml

from tests.conftest import Serve
from tests.support.daemon import Blockd
from tests.support.questions import CORPORATE, GUEST, PERSONAL, STRANGER, ask, rcode
from tests.support.upstream import Upstream

FILES = sorted(Path(__file__).parent.glob("*.scenario"))
CLIENTS = {"corporate": CORPORATE, "personal": PERSONAL, "guest": GUEST, "stranger": STRANGER}
ASKS = re.compile(r"(\w+) asks (\S+) (\S+)((?: \+\w+)*): (\w+)(?: (.+))?")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_scenario(file: Path, serve: Serve, upstream: Upstream) -> None:
    """Every step holds, in order."""
    with ExitStack() as stack:
        _run(file, serve([upstream.address]), upstream, stack)


def _run(file: Path, blockd: Blockd, upstream: Upstream, stack: ExitStack) -> None:
    seen = 0
    inner: dict[str, Upstream] = {}
    seen_of = {"": 0}
    for number, line in enumerate(file.read_text().splitlines(), 1):
        step = line.split("#")[0].strip()
        place = f"{file.name}:{number}: {step}"
        if not step:
            continue
        if found := ASKS.fullmatch(step):
            _ask(blockd, place, *found.groups(""))
        elif step.startswith("upstream: "):
            record = step.removeprefix("upstream: ")
            upstream.records.setdefault(record.split()[0].rstrip("."), []).append(record)
        elif found := re.fullmatch(r"(zone (\S+)|general servers) w\w+ asked:(.*)", step):
            server = inner[found[2]] if found[2] else upstream
            kinds = [f"{asked.name} {asked.qtype}" for asked in server.asked]
            assert " ".join(kinds[seen_of.get(found[2] or "", 0) :]) == found[3].strip(), place
            seen_of[found[2] or ""] = len(kinds)
        elif found := re.fullmatch(r"zone (\S+): (.+)", step):
            if found[1] not in inner:
                inner[found[1]] = stack.enter_context(Upstream({}))
                zones = {zone: [server.address] for zone, server in inner.items()}
                blockd.values["upstream"]["zones"] = zones
                _reload(blockd, place)
            inner[found[1]].records.setdefault(found[2].split()[0].rstrip("."), []).append(found[2])
        elif step.startswith("upstream forget "):
            upstream.records.pop(step.split()[2], None)
        elif step.startswith("upstream was asked:"):
            assert upstream.names()[seen:] == step.partition(":")[2].split(), place
            seen = len(upstream.asked)
        elif step.startswith("wait "):
            time.sleep(float(step.split()[1]))
        elif step.startswith("policy "):
            group, _, values = step.removeprefix("policy ").partition(": ")
            blockd.values["policies"][group] = yaml.safe_load(values)
            _reload(blockd, place)
        elif step.startswith("app "):
            name, _, values = step.removeprefix("app ").partition(": ")
            blockd.write_app(name, **yaml.safe_load(values))
            _reload(blockd, place)
        elif step.startswith("cache: "):
            blockd.values["cache"].update(yaml.safe_load(step.removeprefix("cache: ")))
            _reload(blockd, place)
        else:
            raise AssertionError(f"{place}: this is no step")


def _reload(blockd: Blockd, place: str) -> None:
    done = blockd.reload()
    assert done.returncode == 0, place + "\n" + done.stderr


def _ask(blockd: Blockd, place: str, who: str, name: str, qtype: str, marks: str, wanted: str, records: str) -> None:
    flags = dns.flags.CD if "+cd" in marks else dns.flags.Flag(0)
    flags |= dns.flags.Flag(0) if "+nord" in marks else dns.flags.RD
    got = ask(
        blockd, name, qtype, client=CLIENTS[who], tcp="+tcp" in marks, flags=int(flags), want_dnssec="+do" in marks
    )
    assert rcode(got) == wanted, place
    if records:
        rows = [row.strip() for row in records.split("|")] if records != "nothing" else []
        have = [row for rrset in got.answer for row in rrset.to_text().replace("\n", "|").split("|")]
        assert [row.replace(" IN ", " ", 1) for row in have] == [row.replace(" IN ", " ", 1) for row in rows], place

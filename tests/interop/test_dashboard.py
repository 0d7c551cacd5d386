"""The dashboard and the alerts, panel by panel, against a real Prometheus with the real daemon behind it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import dns.exception
import dns.query
import dns.xfr
import dns.zone
import pytest

from tests.conftest import Serve
from tests.support.daemon import BLOCKD, Blockd, free_port
from tests.support.dashboard import DASHBOARD, ROOT, Prometheus, filled_in, metric_names, panels
from tests.support.lan import Lan
from tests.support.list_server import ListServer
from tests.support.questions import CORPORATE, GUEST, PERSONAL, ask
from tests.support.upstream import Upstream

ZONE = "corporate.rpz.test"
PROMETHEUS = ROOT / "config" / "prometheus"


def families(blockd: Blockd) -> set[str]:
    """Name every series that the daemon exposes."""
    # Those of what this daemon has none of, such as lists from elsewhere, have no row, and are declared.
    declared = re.findall(r"^# TYPE (\S+)", blockd.http("/metrics"), re.MULTILINE)
    return {*declared, *(row.split("{")[0] for row in blockd.metrics())}


def exercise(blockd: Blockd, seconds: float) -> None:
    """Ask as a small office would, for some time, with a reload in it."""
    until = time.monotonic() + seconds
    at = 0
    while time.monotonic() < until:
        at += 1
        for client in (CORPORATE, PERSONAL, GUEST):
            ask(blockd, "www.tiktok.com", client=client, tcp=at % 5 == 0)
            ask(blockd, f"n{at}.example", client=client)
        if at % 20 == 5:
            assert blockd.reload().returncode == 0
        time.sleep(0.05)


def transfer(port: int) -> None:
    """Take the zone for other resolvers, as one of them would, once it is served."""
    deadline = time.monotonic() + 20
    while True:
        zone = dns.zone.Zone(ZONE)
        query, _ = dns.xfr.make_query(zone)
        try:
            dns.query.inbound_xfr("127.0.0.1", zone, query, port, timeout=5)
        except (OSError, EOFError, dns.exception.DNSException):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        else:
            assert zone.get_rdataset("*.from.elsewhere.example", "CNAME") is not None
            return


@pytest.fixture
def elsewhere() -> Iterator[ExitStack]:
    """Give a stack that ends after the daemons that need what is on it."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.timeout(180)
def test_every_panel_shows_data(serve: Serve, upstream: Upstream, elsewhere: ExitStack, tmp_path: Path) -> None:
    """Prometheus takes each query, and it gives the numbers of a daemon under load; alerts load and are quiet."""
    upstream.records["www.tiktok.com"] = ["www.tiktok.com. 300 IN A 192.0.2.1"]
    lists = elsewhere.enter_context(ListServer(tmp_path))
    lists.pages["/list"] = b"from.elsewhere.example\n"
    (tmp_path / "dhcp.leases").write_text(f"{int(time.time()) + 9_999} 00:16:3e:00:47:11 127.0.0.99 laptop *\n")
    port = free_port()
    zones = {"corporate": {"zone": ZONE, "secondaries": [{"address": f"127.0.0.1:{free_port()}"}]}}
    blockd = serve(
        [upstream.address],
        apps={"elsewhere": {"lists": [{"url": lists.url("/list"), "ca": str(lists.ca)}]}},
        policies={"corporate": {"block": ["tiktok", "bytedance-platform", "elsewhere"]}},
        transfer={"listen": [f"127.0.0.1:{port}"], "zones": zones},
        devices={"leases": [{"file": str(tmp_path / "dhcp.leases"), "format": "dnsmasq"}]},
        exemptions={"teams": {"cyber": ["root"]}, "mitigations": ["dedicated device"]},
        egress={"enabled": True, "socket": "egress.sock"},
    )
    # A firewall in a namespace of its own: the daemon's socket is in no network.
    lan = elsewhere.enter_context(Lan(tmp_path))
    lan.serve(*BLOCKD, "egress", "--config", str(blockd.file))
    transfer(port)
    dashboard = json.loads(DASHBOARD.read_text())
    started = time.time()
    with Prometheus(tmp_path, f"127.0.0.1:{blockd.admin}") as prometheus:
        exercise(blockd, 12)
        time.sleep(1.5)
        end = time.time()
        for panel in panels(dashboard):
            for target in panel["targets"]:
                query = filled_in(target["expr"], "5s", f"{int(end - started) + 1}s")
                series = prometheus.range(query, started + 4, end, 1)
                assert series, (panel["title"], query)
                values = [value for one in series for _, value in one["values"]]
                assert any(value not in ("NaN", "+Inf") for value in values), (panel["title"], query)
                for one in series:
                    labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                    assert labels <= set(one["metric"]), (panel["title"], one["metric"])
        blocks = prometheus.ask("query", query='sum(blockd_decisions_total{action="block"})')["result"][0]["value"][1]
        assert float(blocks) == blockd.metric("blockd_decisions_total", action="block") > 10
        groups = prometheus.ask("rules")["groups"]
        alerts = {rule["name"]: rule for group in groups for rule in group["rules"]}
        assert len(alerts) >= 10
        assert {rule["health"] for rule in alerts.values()} <= {"ok", "unknown"}
        assert [name for name, rule in alerts.items() if rule["state"] == "firing"] == []


def test_every_metric_that_is_named_exists(serve: Serve, upstream: Upstream) -> None:
    """In the dashboard, the alerts, README and docs; one that does not is found."""
    blockd = serve([upstream.address], apps={"listed": {"lists": [{"file": "l.txt", "format": "domains"}]}})
    (blockd.directory / "apps" / "l.txt").write_text("".join(f"a{at}.example\n" for at in range(9)) + "no name\n")
    blockd.values["policies"]["corporate"]["block"].append("listed")
    assert blockd.reload().returncode == 0
    for client in (CORPORATE, GUEST):
        ask(blockd, "tiktok.com", client=client)
    deadline = time.monotonic() + 5
    while not blockd.metric("blockd_upstream_server_latency_seconds"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    have = families(blockd)
    texts = {path: path.read_text() for path in (DASHBOARD, *PROMETHEUS.glob("*.yml"), ROOT / "README.md")}
    texts |= {path: path.read_text() for path in (ROOT / "docs").glob("*.md")}
    for path, text in texts.items():
        named = {name for name in metric_names(text) if not name.endswith("_")}
        unknown = {name for name in named if name not in have and f"{name}_total" not in have}
        assert unknown <= {"blockd_answer_seconds"}, path
    assert metric_names("sum(rate(blockd_no_such_total[5m]))") - have == {"blockd_no_such_total"}


def test_the_dashboard_is_one_that_somebody_would_put_on_a_wall() -> None:
    """Panels do not overlap, have a title, a unit and a word of explanation; what was promised is there."""
    dashboard = json.loads(DASHBOARD.read_text())
    taken: dict[tuple[int, int], str] = {}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]
    for panel in panels(dashboard):
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
    titles = " ".join(panel["title"].lower() for panel in panels(dashboard))
    for word in (
        "by app",
        "by group",
        "queries",
        "cache",
        "upstreams",
        "reloads",
        "generation",
        "age of the policy",
        "elsewhere",
        "zones",
    ):
        assert word in titles
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "instance", "group"}


@pytest.mark.parametrize(
    "command",
    [
        ["check", "rules", "blockd.rules.yml"],
        ["test", "rules", "blockd.test.yml"],
        ["check", "config", "prometheus.yml"],
    ],
)
def test_alerts_fire_when_they_should(command: list[str]) -> None:
    """promtool's own checks and tests: each alert fires on its case, none on a good day."""
    done = subprocess.run(["promtool", *command], cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rules = re.findall(r"- alert: (\w+)", (PROMETHEUS / "blockd.rules.yml").read_text())
    tests = (PROMETHEUS / "blockd.test.yml").read_text()
    for rule in rules:
        assert tests.count(f"alertname: {rule}") >= 2, rule

"""Lists as others write them, on the running daemon."""

from __future__ import annotations

from typing import Any

from tests.conftest import Serve
from tests.support.questions import CORPORATE, addresses, ask, rcode
from tests.support.upstream import Asked, Reply, Upstream, answer

ADBLOCK = """! Title: somebody's
||ads.example^
@@||ok.ads.example^
||worse.ok.ads.example^$important
|one.example^
||opened.example^
||opened.example^$badfilter
||deny.example^$denyallow=sub.deny.example
||site.example^$third-party
@@||tiktok.com^
@@||own.example^
"""
DNSMASQ = """address=/null.example/0.0.0.0
local=/gone.example/
server=/kept.gone.example/#
server=/elsewhere.example/192.0.2.53
"""


def any_address(query: Any, asked: Asked) -> Reply:
    """Answer every A question."""
    return answer(query, f"{asked.name}. 300 IN A 192.0.2.1")


def test_formats_are_found_out_and_obeyed(serve: Serve, upstream: Upstream) -> None:
    """What a list says, and nothing wider; its exceptions open nothing that an app has of its own."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"largest_unparsed": "50%"})
    (blockd.directory / "apps" / "a.txt").write_text(ADBLOCK)
    (blockd.directory / "apps" / "d.conf").write_text(DNSMASQ)
    (blockd.directory / "apps" / "h.txt").write_text("127.0.0.1 localhost\n0.0.0.0 host.example\n")
    lists = [{"file": "a.txt"}, {"file": "d.conf"}, {"file": "h.txt"}]
    blockd.write_app("listed", suffixes=["own.example"], lists=lists)
    blockd.values["policies"]["corporate"]["block"].append("listed")
    assert blockd.reload().returncode == 0
    wanted = {
        "ads.example": True,
        "www.ads.example": True,
        "ok.ads.example": False,
        "www.ok.ads.example": False,
        "worse.ok.ads.example": True,
        "one.example": True,
        "www.one.example": False,
        "opened.example": False,
        "www.deny.example": True,
        "sub.deny.example": False,
        "site.example": False,
        "www.tiktok.com": True,
        "www.own.example": True,
        "www.null.example": True,
        "www.gone.example": True,
        "kept.gone.example": False,
        "elsewhere.example": False,
        "host.example": True,
        "www.host.example": False,
    }
    got = {name: not addresses(ask(blockd, name, client=CORPORATE)) for name in wanted}
    assert got == wanted
    shown = blockd.run("lists").stdout
    rows = {
        line.split()[1].rpartition("/")[2]: line.split()[2:6] for line in shown.splitlines() if " listed" in f" {line}"
    }
    assert rows["a.txt"] == ["adblock", "block", "8", "2"]
    assert rows["d.conf"] == ["dnsmasq", "block", "3", "1"]
    assert rows["h.txt"] == ["hosts", "block", "1", "1"]
    assert blockd.metric("blockd_list_lines_skipped", app="listed", reason="a modifier that is not honoured") == 1
    found = blockd.run("explain", "--client", CORPORATE, "worse.ok.ads.example").stdout
    assert "a.txt:4" in found, found


def test_expressions_of_a_list_are_patterns(serve: Serve, upstream: Upstream) -> None:
    """Found anywhere in a name, or where they say; a bad line is skipped, and the reload takes the others."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"largest_unparsed": "50%"})
    (blockd.directory / "apps" / "r.txt").write_text("tracker\\d\n^exact[.]example$\n(\n")
    blockd.write_app("listed", lists=[{"file": "r.txt", "format": "regex"}])
    blockd.values["policies"]["corporate"]["block"].append("listed")
    assert blockd.reload().returncode == 0
    blocked = {"a.tracker1.example": True, "tracker.example": False, "exact.example": True, "www.exact.example": False}
    for name, is_blocked in blocked.items():
        assert (rcode(ask(blockd, name, client=CORPORATE)) == "NXDOMAIN") == is_blocked, name
    explained = blockd.run("explain", "--client", CORPORATE, "a.tracker1.example")
    assert explained.returncode == 0, explained.stderr
    assert "pattern" in explained.stdout
    assert blockd.metric("blockd_list_names", app="listed") == 2


def test_expressions_that_fit_everybody_are_refused(serve: Serve, upstream: Upstream) -> None:
    """Those that fit any name, and those that fit one of ours."""
    blockd = serve([upstream.address], reload={"never_block": ["dept.example"]})
    file = blockd.directory / "apps" / "r.txt"
    blockd.write_app("listed", lists=[{"file": "r.txt", "format": "regex"}])
    blockd.values["policies"]["corporate"]["block"].append("listed")
    for line in (".", "[a-z0-9]", "^dept", "e$"):
        file.write_text(f"tracker\n{line}\n")
        refused = blockd.reload()
        assert refused.returncode == 1, line
        assert "r.txt:2: " in refused.stderr, refused.stderr

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


EXCEPTIONS = """||shop.example^
@@|api.shop.example^
@@ok.shop.example
@@://img.shop.example^
||pay.example^$important
@@||till.pay.example^$important
@@|one.pay.example^$important
@@||plain.pay.example^
||deny.example^$important,denyallow=open.deny.example
||odd.example^
@@||odd.example^$client=10.0.0.1
@@/odd/
@@||*.odd.example^
"""
WILDCARDS = """address=/*.games.example/#
address=/par.example/
server=/*.par.example/#
local=/..dots.example/
"address=/quoted.example/"  # why
ipset=/games.example/par.example/set
"""
ADDRESSES = """bad.example
192.0.2.11
2001:db8::11
192.0.2.12:8080
192.0.2.0/24
"""
#: Name -> whether the lists above block it.
WANTED = {
    "shop.example": True,
    "www.shop.example": True,
    "api.shop.example": False,
    "v1.api.shop.example": True,
    "ok.shop.example": False,
    "not.ok.shop.example": True,
    "img.shop.example": False,
    "pay.example": True,
    "till.pay.example": False,
    "a.till.pay.example": False,
    "one.pay.example": False,
    "a.one.pay.example": True,
    "plain.pay.example": True,
    "deny.example": True,
    "a.open.deny.example": False,
    "odd.example": True,
    "www.odd.example": True,
    "games.example": False,
    "a.b.games.example": True,
    "par.example": True,
    "www.par.example": False,
    "www.dots.example": True,
    "quoted.example": True,
    "bad.example": True,
    "11.example": False,
}


def test_exceptions_wildcards_and_addresses_mean_what_they_say(serve: Serve, upstream: Upstream) -> None:
    """Each to its name; the app's own names and another app's lists stay as they are."""
    upstream.script = any_address
    blockd = serve([upstream.address], reload={"largest_unparsed": "80%"})
    apps = blockd.directory / "apps"
    files = {"a.txt": EXCEPTIONS, "d.conf": WILDCARDS, "m.txt": ADDRESSES, "other.txt": "||both.example^\n"}
    for name, text in files.items():
        (apps / name).write_text(text)
    (apps / "opens.txt").write_text("||none.example^\n@@||both.example^$important\n@@||own.example^$important\n")
    blockd.write_app("feed", lists=[{"file": name} for name in ("a.txt", "d.conf", "m.txt")])
    blockd.write_app("other", lists=[{"file": "other.txt"}])
    blockd.write_app("opens", suffixes=["own.example"], lists=[{"file": "opens.txt"}])
    blockd.values["policies"]["corporate"]["block"] += ["feed", "other", "opens"]
    assert blockd.reload().returncode == 0
    wanted = {**WANTED, "www.both.example": True, "www.own.example": True}
    got = {name: not addresses(ask(blockd, name, client=CORPORATE)) for name in wanted}
    assert got == wanted
    assert rcode(ask(blockd, "par.example", client=CORPORATE)) == "NOERROR", "names below it are open (RFC 8020)"
    for name, rule in {"www.games.example": "*.games.example", "a.one.pay.example": "pay.example"}.items():
        shown = blockd.run("explain", "--client", CORPORATE, name).stdout
        assert f"rule      feed: list suffix {rule} (" in shown
    assert blockd.metric("blockd_list_lines_skipped", app="feed", reason="an address, not a name") == 4
    assert blockd.metric("blockd_list_lines_skipped", app="feed", reason="an option about sets of addresses") == 1
    # A list of nothing else is no list, whatever share of lines may give no name; nor is one that is about every name.
    for text, said in (
        ("192.0.2.11\n192.0.2.12\n", "an address, not a name"),
        (
            "bad.example\n192.0.2.11\n2001:db8::11\n192.0.2.12\n192.0.2.13\n192.0.2.14\n",
            "5 of 6 lines (83%) give no name",
        ),
    ):
        (apps / "m.txt").write_text(text)
        refused = blockd.reload()
        assert refused.returncode == 1
        assert said in refused.stderr, refused.stderr
    (apps / "m.txt").write_text(ADDRESSES)
    (apps / "d.conf").write_text(f"{WILDCARDS}address=/#/\n")
    refused = blockd.reload()
    assert refused.returncode == 1
    assert f"{apps / 'd.conf'}:7: address=/#/: a rule about every name; 1 such in this list" in refused.stderr
    assert blockd.run("reload", "--accept").returncode == 0
    assert addresses(ask(blockd, "elsewhere.example", client=CORPORATE))

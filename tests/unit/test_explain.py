"""`blockd explain` gives the whole reasoning, from the daemon and offline alike."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.conftest import Serve
from tests.support.questions import CORPORATE, PERSONAL, STRANGER, ask, rcode
from tests.support.upstream import Upstream


@pytest.mark.parametrize("words", [[], ["--offline"]])
def test_a_block_is_explained_with_file_and_line(words: list[str], serve: Serve, upstream: Upstream) -> None:
    """Device, group, view, app, rule, verdict and the answer that is sent."""
    blockd = serve([upstream.address])
    done = blockd.run("explain", *words, "--client", CORPORATE, "vm.TikTok.com")
    text = done.stdout
    assert done.returncode == 0, done.stderr
    config = blockd.file.read_text().splitlines()
    line = next(at for at, row in enumerate(config, 1) if "127.0.0.1/32" in row)
    assert f"device    127.0.0.1: in 127.0.0.1/32 ({blockd.file}:{line})" in text
    assert "group     corporate" in text
    assert "view      block bytedance-platform, canary-names, tiktok; monitor -; allow -" in text
    builtin = Path(__file__).parents[2] / "blockd" / "apps" / "builtin" / "tiktok.yaml"
    line = builtin.read_text().splitlines().index("  - tiktok.com") + 1
    assert f"rule      tiktok: suffix tiktok.com ({builtin}:{line})" in text
    assert "verdict   block (tiktok)" in text
    assert "answer    NXDOMAIN" in text
    assert "EDE 15: TikTok is blocked by policy on this network; ask mailto:security@dept.example" in text


def test_what_the_cache_knows_is_part_of_it(serve: Serve, upstream: Upstream) -> None:
    """A name behind an alias: the target, its rule, and for another device no block."""
    upstream.records["news.example"] = ["news.example. 300 IN CNAME p16.tiktokcdn.com."]
    upstream.records["p16.tiktokcdn.com"] = ["p16.tiktokcdn.com. 300 IN A 71.18.0.1"]
    blockd = serve([upstream.address])
    before = json.loads(blockd.run("explain", "--json", "--client", CORPORATE, "news.example").stdout)
    assert (before["action"], before["is_cached"]) == ("pass", False)
    ask(blockd, "news.example", client=PERSONAL)
    count = blockd.metric("blockd_decisions_total")
    after = json.loads(blockd.run("explain", "--json", "--client", CORPORATE, "news.example").stdout)
    assert (after["action"], after["app"], after["target"]) == ("block", "bytedance-platform", "71.18.0.1")
    assert after["found"] == ["bytedance-platform", "tiktok"]
    assert blockd.metric("blockd_decisions_total") == count, "explaining counts nothing"
    other = json.loads(blockd.run("explain", "--json", "--client", PERSONAL, "news.example").stdout)
    assert (other["action"], other["group"], other["answer"][0]) == ("pass", "personal", "NOERROR, from the cache")
    assert "p16.tiktokcdn.com." in other["answer"][1]


def test_a_rule_of_a_list_is_found_by_its_line(serve: Serve, upstream: Upstream) -> None:
    """In the inputs that were accepted, whatever the file says now."""
    blockd = serve([upstream.address])
    listed = blockd.directory / "apps" / "l.txt"
    listed.write_text("# a list\n0.0.0.0 one.example two.example\n0.0.0.0 three.example\n")
    blockd.write_app("listed", lists=[{"file": "l.txt", "format": "hosts"}])
    blockd.values["policies"]["corporate"]["block"].append("listed")
    assert blockd.reload().returncode == 0
    listed.write_text("")
    done = blockd.run("explain", "--client", CORPORATE, "three.example")
    assert f"rule      listed: list host three.example ({listed}:3)" in done.stdout


def test_questions_that_make_no_sense(serve: Serve, upstream: Upstream) -> None:
    """Each with its reason and exit code 1."""
    blockd = serve([upstream.address])
    cases = [
        (["--client", "nobody", "a.example"], "'nobody' does not appear to be an IPv4 or IPv6 address"),
        (["--client", CORPORATE, "a..example"], "an empty label"),
        (["--client", CORPORATE, r"a\256.example"], "an escape that is not"),
        (["--client", CORPORATE, r"a\25"], "an escape that is not"),
        (["--client", CORPORATE, "a b.example"], "a character that needs an escape"),
        (["--client", CORPORATE, r"\001" * 64], "a label of more than 63 octets"),
        (["--client", CORPORATE, "a." * 127 + "ab"], "a name of more than 255 octets"),
        (["--client", CORPORATE, "a.example", "NOTYPE"], "'NOTYPE' is no query type, such as A"),
    ]
    for words, wanted in cases:
        done = blockd.run("explain", *words)
        assert done.returncode == 1
        assert wanted in done.stderr
    done = blockd.run("explain", "--client", "192.0.2.1", "a.example")
    assert "REFUSED: the address is not among server.clients" in done.stdout
    assert "in no group's networks" in blockd.run("explain", "--client", STRANGER, "a.example").stdout


def test_names_are_read_as_the_log_writes_them(serve: Serve, upstream: Upstream) -> None:
    """Escapes stand for octets, an escaped dot ends no label, and internationalised names are read as before."""
    # The log has the first name of each rule.
    names = {
        r"my\032printer.One.example": "one.example",
        r"a\.b\"\000.two.example": "two.example",
        r"\255\\\064.three.example": "three.example",
    }
    apps = {"odd": {"suffixes": list(names.values())}}
    blockd = serve([upstream.address], apps=apps, policies={"corporate": {"block": ["odd"]}}, log={"format": "json"})
    for name, rule in names.items():
        assert rcode(ask(blockd, name, client=CORPORATE)) == "NXDOMAIN"
        deadline = time.monotonic() + 5
        while not (rows := [row for row in blockd.log.read_text().splitlines() if f'"suffix {rule}"' in row]):
            assert time.monotonic() < deadline, blockd.log.read_text()
            time.sleep(0.02)
        written = json.loads(rows[0])["name"]
        for words in ([], ["--offline"]):
            shown = json.loads(blockd.run("explain", *words, "--json", "--client", CORPORATE, written).stdout)
            assert (shown["name"], shown["action"], shown["rule"]["rule"]) == (written, "block", rule)
        assert f"suffix {rule}" in blockd.run("apps", "which", written).stdout
    for name, written in {
        r"one\.example": r"one\046example",
        r"one\046example.": r"one\046example",
        "müsli.example": "xn--msli-0ra.example",
    }.items():
        shown = json.loads(blockd.run("explain", "--json", "--client", CORPORATE, name).stdout)
        assert (shown["name"], shown["action"]) == (written, "pass")


def test_what_is_explained_is_what_is_sent(serve: Serve, upstream: Upstream) -> None:
    """Odd types and addresses: the same order as for a packet."""
    blockd = serve([upstream.address])
    upstream.records["www.tiktok.com"] = ["www.tiktok.com. 300 IN CNAME e.tiktokcdn.com."]
    upstream.records["e.tiktokcdn.com"] = ["e.tiktokcdn.com. 300 IN A 192.0.2.1"]
    ask(blockd, "www.tiktok.com", client=PERSONAL)

    def answer(client: str, name: str, qtype: str) -> str:
        done = blockd.run("explain", "--json", "--client", client, name, qtype)
        assert done.returncode == 0, done.stderr
        return " ".join(json.loads(done.stdout)["answer"])

    assert "HINFO" in answer(PERSONAL, "a.example", "ANY")
    assert answer(PERSONAL, "a.example", "AXFR") == "REFUSED EDE 20: this resolver transfers no zone"
    assert answer(CORPORATE, "tiktok.com", "AXFR") == "REFUSED EDE 20: this resolver transfers no zone"
    assert answer(CORPORATE, "tiktok.com", "DS") == answer(PERSONAL, "10.in-addr.arpa", "DS") == "from upstream"
    assert answer(CORPORATE, "www.tiktok.com", "DS").startswith("NXDOMAIN")
    assert answer(PERSONAL, "a.example", "OPT") == "FORMERR"
    assert answer(f"::ffff:{CORPORATE}", "tiktok.com", "A").startswith("NXDOMAIN")
    warm = json.loads(blockd.run("explain", "--json", "--client", CORPORATE, "www.tiktok.com").stdout)
    assert (warm["rule"]["rule"], warm["target"]) == ("tiktok.com", None), "the name decided, not its alias"


def test_a_target_in_a_hole_explains_nothing(serve: Serve, upstream: Upstream) -> None:
    """The rule that is shown is the one that gave the app."""
    blockd = serve(
        [upstream.address],
        apps={"h": {"suffixes": ["h.example"], "holes": ["ok.h.example"]}},
        policies={"corporate": {"block": ["h"]}},
    )
    upstream.records["q.test.org"] = ["q.test.org. 300 IN CNAME ok.h.example."]
    upstream.records["ok.h.example"] = ["ok.h.example. 300 IN CNAME bad.h.example."]
    upstream.records["bad.h.example"] = ["bad.h.example. 300 IN A 192.0.2.1"]
    ask(blockd, "q.test.org", client=PERSONAL)
    shown = json.loads(blockd.run("explain", "--json", "--client", CORPORATE, "q.test.org").stdout)
    assert (shown["action"], shown["target"], shown["rule"]["kind"]) == ("block", "bad.h.example", "suffix")

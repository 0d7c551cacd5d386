"""When no upstream answers, the last answer that is known is served for a while (RFC 8767), judged like any other."""

from __future__ import annotations

import time

import dns.message

from tests.conftest import Serve
from tests.support.questions import CORPORATE, PERSONAL, addresses, ask, ede, rcode
from tests.support.upstream import Asked, Reply, Upstream, answer

STALE, STALE_NXDOMAIN = 3, 19


def script(query: dns.message.Message, asked: Asked) -> Reply:
    """Answer with a TTL of a second."""
    if asked.name == "gone.example":
        return answer(query, authority=("example. 1 IN SOA a. b. 1 2 3 4 1",), rcode=3)
    if asked.name == "alias.example":
        return answer(query, "alias.example. 1 IN CNAME www.tiktok.com.", "www.tiktok.com. 1 IN A 192.0.2.1")
    return answer(query, f"{asked.name}. 1 IN A 192.0.2.1")


def test_what_has_ended_is_served_when_nobody_answers(serve: Serve) -> None:
    """With TTL 30 and a reason, at once the second time; blocks stay blocks; and it ends when somebody answers."""
    with Upstream(script) as upstream:
        blockd = serve([upstream.address])
        names = ("plain.example", "gone.example", "alias.example")
        for name in names:
            ask(blockd, name, client=PERSONAL)
        upstream.script = lambda query, asked: None
        time.sleep(1.2)
        started = time.monotonic()
        got = ask(blockd, "plain.example", client=PERSONAL)
        assert 1.0 < time.monotonic() - started < 2.0, "others may still answer: the client waits 1.8 s"
        assert (addresses(got), got.answer[0].ttl, ede(got)[0][0]) == (["192.0.2.1"], 30, STALE)
        started = time.monotonic()
        again = ask(blockd, "plain.example", client=PERSONAL, tcp=True)
        assert time.monotonic() - started < 0.3, "for half a minute nobody waits"
        assert ede(again)[0][0] == STALE
        gone = ask(blockd, "gone.example", client=PERSONAL)
        assert (rcode(gone), ede(gone)[0][0]) == ("NXDOMAIN", STALE_NXDOMAIN)
        assert rcode(ask(blockd, "alias.example", client=CORPORATE)) == "NXDOMAIN", "blocked as if it were fresh"
        assert ede(ask(blockd, "alias.example", client=CORPORATE))[0][0] == 15
        stale = ask(blockd, "alias.example", client=PERSONAL)
        assert (rcode(stale), ede(stale)[0][0]) == ("NOERROR", STALE)
        assert blockd.metric("blockd_cache_stale_total") >= 4
        assert rcode(ask(blockd, "new.example", client=PERSONAL)) == "SERVFAIL", "what nobody knew stays unknown"


def test_a_failure_is_no_reason_to_forget_but_a_loop_is_an_answer(serve: Serve) -> None:
    """SERVFAIL brings the old answer back; an alias chain that loops does not, or it would be a way round."""
    with Upstream(script) as upstream:
        blockd = serve([upstream.address])
        for name in ("a.example", "b.example"):
            ask(blockd, name, client=PERSONAL)
        time.sleep(1.2)
        upstream.script = lambda query, asked: answer(query, rcode=2)
        assert ede(ask(blockd, "a.example", client=PERSONAL))[0][0] == STALE

        def loop(query: dns.message.Message, asked: Asked) -> Reply:
            return answer(query, "b.example. 60 IN CNAME c.example.", "c.example. 60 IN CNAME b.example.")

        upstream.script = loop
        assert rcode(ask(blockd, "b.example", client=PERSONAL)) == "SERVFAIL"


def test_an_alias_of_a_zone_leads_to_a_stale_answer_too(serve: Serve) -> None:
    """What a policy zone points at says that it is stale, and lives as long as any stale answer."""
    with Upstream(script) as upstream:
        blockd = serve([upstream.address])
        head = "@ SOA ns.invalid. host.invalid. 1 60 60 86400 60\n"
        (blockd.directory / "apps" / "z.rpz").write_text(f"{head}garden.example CNAME plain.example.\n")
        blockd.write_app("zones", lists=[{"file": "z.rpz"}])
        blockd.values["policies"]["corporate"]["block"].append("zones")
        assert blockd.reload().returncode == 0
        assert addresses(ask(blockd, "garden.example")) == ["192.0.2.1"]
        upstream.script = lambda query, asked: None
        time.sleep(1.2)
        for tcp in (False, True):
            got = ask(blockd, "garden.example", tcp=tcp)
            assert (addresses(got), ede(got)[0][0]) == (["192.0.2.1"], STALE)
            assert [rrset.ttl for rrset in got.answer] == [30, 30]
        got = ask(blockd, "unknown.example", client=PERSONAL)
        assert rcode(got) == "SERVFAIL"


def test_stale_answers_can_be_switched_off(serve: Serve) -> None:
    """`cache.stale: 0`."""
    with Upstream(script) as upstream:
        blockd = serve([upstream.address], cache={"stale": 0})
        ask(blockd, "plain.example", client=PERSONAL)
        upstream.script = lambda query, asked: None
        time.sleep(1.2)
        assert rcode(ask(blockd, "plain.example", client=PERSONAL)) == "SERVFAIL"

"""`strip_ech`: a group's devices learn nothing of Encrypted Client Hello, and others are answered as ever."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.rdatatype

from tests.conftest import Serve
from tests.support.questions import CORPORATE, PERSONAL, ask
from tests.support.upstream import Upstream, answer

RECORD = "1 . mandatory=alpn,ech alpn=h2,h3 ipv4hint=192.0.2.1 ech=AAj+DQAEYWJjZA=="
SIGNATURE = "HTTPS 13 2 60 20300101000000 20200101000000 1 ech.example. AAAA"


def parameters(got: dns.message.Message) -> list[str]:
    """Give the HTTPS records as text, without owner and TTL."""
    return [str(rdata) for rrset in got.answer if rrset.rdtype == dns.rdatatype.HTTPS for rdata in rrset]


def test_a_group_learns_nothing_of_ech(serve: Serve, upstream: Upstream) -> None:
    """The parameter, its mention among mandatory ones, the signature and AD go; others get the whole of it."""
    records = [f"www.ech.example. 60 IN HTTPS {RECORD}", f"www.ech.example. 60 IN RRSIG {SIGNATURE}"]
    plain = ["plain.example. 60 IN HTTPS 1 . alpn=h2"]
    upstream.script = lambda query, asked: answer(query, *(records if asked.name == "www.ech.example" else plain))
    blockd = serve([upstream.address], upstream={"trust_ad": True})
    blockd.values["policies"]["corporate"]["strip_ech"] = True
    assert blockd.reload().returncode == 0
    for tcp in (False, True):
        for _ in range(2):
            whole = ask(blockd, "www.ech.example", "HTTPS", client=PERSONAL, tcp=tcp, want_dnssec=True)
            assert "ech=" in parameters(whole)[0]
            assert len(whole.answer) == 2
            bare = ask(blockd, "www.ech.example", "HTTPS", client=CORPORATE, tcp=tcp, want_dnssec=True)
            assert parameters(bare) == ['1 . mandatory="alpn" alpn="h2,h3" ipv4hint="192.0.2.1"']
            assert [rrset.rdtype for rrset in bare.answer] == [dns.rdatatype.HTTPS]
            assert not bare.flags & dns.flags.AD
    assert parameters(ask(blockd, "plain.example", "HTTPS", client=CORPORATE)) == ['1 . alpn="h2"']
    # One question a variant, whoever asks and how often.
    assert [asked.name for asked in upstream.asked if asked.name == "www.ech.example"] == ["www.ech.example"] * 2
    blockd.values["policies"]["corporate"]["strip_ech"] = False
    assert blockd.reload().returncode == 0
    assert "ech=" in parameters(ask(blockd, "www.ech.example", "HTTPS", client=CORPORATE))[0]

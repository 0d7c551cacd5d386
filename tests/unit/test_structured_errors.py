"""Structured DNS errors (draft-ietf-dnsop-structured-dns-error): JSON to clients that ask, text to others."""

from __future__ import annotations

import json

import dns.edns
import pytest

from tests.conftest import Serve
from tests.support.questions import CORPORATE, ask, ede
from tests.support.upstream import Upstream

ASKS = {
    "an error in the query": dns.edns.EDEOption(dns.edns.EDECode.OTHER),
    "option 26": dns.edns.GenericOption("26", b""),
}


@pytest.mark.parametrize("way", ASKS)
def test_who_asks_gets_json(way: str, serve: Serve, upstream: Upstream) -> None:
    """Contact, justification, sub-error and organization; nothing about the device."""
    blockd = serve([upstream.address], answers={"organization": "Department of Example"})
    got = ask(blockd, "www.tiktok.com", client=CORPORATE, options=[ASKS[way]])
    ((code, text),) = ede(got)
    assert code == 15
    assert json.loads(text) == {
        "c": ["mailto:security@dept.example"],
        "j": "TikTok is blocked by policy on this network",
        "s": 5,
        "o": "Department of Example",
    }
    assert CORPORATE not in text
    plain = ede(ask(blockd, "www.tiktok.com", client=CORPORATE))[0][1]
    assert plain == "TikTok is blocked by policy on this network; ask mailto:security@dept.example"


def test_both_can_be_switched_off(serve: Serve, upstream: Upstream) -> None:
    """Structured ones alone, or every Extended DNS Error; without a contact the draft's JSON would be invalid."""
    blockd = serve([upstream.address], answers={"structured_errors": False})
    options = [dns.edns.EDEOption(dns.edns.EDECode.OTHER)]
    assert ede(ask(blockd, "tiktok.com", client=CORPORATE, options=options))[0][1].startswith("TikTok is blocked")
    blockd.values["answers"] = {"ede": False, "contact": "mailto:security@dept.example"}
    assert blockd.reload().returncode == 0
    assert ede(ask(blockd, "tiktok.com", client=CORPORATE, options=options)) == []
    blockd.values["answers"] = {"contact": "room 101"}
    assert blockd.reload().returncode == 0
    assert ede(ask(blockd, "tiktok.com", client=CORPORATE, options=options))[0][1].startswith("TikTok is blocked")

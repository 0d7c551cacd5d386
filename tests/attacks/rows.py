"""The attacks on a filtering forwarder: an id a row, and the missing feature that a row waits for."""

from __future__ import annotations

#: Row -> nothing, or the feature without which it reaches no socket of ours.
ROWS: dict[str, str | None] = {
    "id-port-entropy": None,
    "blind-spoofing": None,
    "birthday": None,
    "0x20": "0x20 is not implemented: upstream names are sent in lower case",
    "bailiwick": None,
    "compression-bombs": None,
    "oversized-labels": None,
    "look-alike-names": None,
    "case-and-idn": None,
    "edns-abuse": None,
    "identity-forgery": None,
    "decide-use-split": None,
    "cached-verdict-leak": None,
    "stale-negative-dns64": None,
    "qtype-bypass": None,
    "cname-cloaking": None,
    "tcp-slowloris": None,
    "many-queries-per-stream": None,
    "query-flood": None,
    "random-subdomain": None,
    "amplification": None,
    "dnsbomb": None,
    "keytrap-nsec3": None,
    "self-made-loop": None,
    "http": None,
    "injection": None,
    "list-poisoning": None,
    "reload-races": None,
    "clock-jumps": None,
    "egress-race": None,
    "log-reader": None,
    "doq-doh3": "DoQ and DoH do not exist yet",
}

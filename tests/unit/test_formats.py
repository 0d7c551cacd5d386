"""Lists in every format, as strangers write them: what becomes of each line, kept beside it."""

from __future__ import annotations

import tempfile

import pytest

from blockd.fastpath import _native, list_names, read_list
from blockd.settings.records import record_data
from blockd.settings.values import to_ascii

LONG = "x" * 64
DOMAINS = f"""\ufeff# a comment\r
Tiktok.COM\r
  indented.example\t# why
*.wild.example
trailing.example.
münchen.example

twice.example
twice.example
two words.example
{LONG}.example
-dash-.example
under_score.example
http://url.example/path
com
a..b.example
"""
HOSTS = """127.0.0.1 localhost
::1 ip6-localhost
0.0.0.0 one.example two.example # both
0.0.0.0\tTabs.Example
:: six.example
192.0.2.1 elsewhere.example
0.0.0.0
junk
"""
ADBLOCK = """! Title: a list
[Adblock Plus 2.0]
||ads.example^
||Ads2.example^$third-party
@@||fine.ads.example^
||all.example^$important
||off.example^
||off.example^$badfilter
||deny.example^$denyallow=sub.deny.example
|one.example^
plain.example
||path.example/ads
/regular[0-9]+expression/
||star*.example^
example.org##.banner
0.0.0.0 hosts.example
"""
DNSMASQ = """# options
address=/null.example/0.0.0.0
address=/six.example/::
address=/elsewhere.example/192.0.2.1
local=/gone.example/
server=/none.example/
server=/kept.example/#
server=/asked.example/192.0.2.53
address=/a.example/b.example/
cache-size=10
"""
RPZ = """$TTL 60
@ SOA ns.invalid. host.invalid. 1 2 3 4 5
bad.example CNAME .
*.bad.example CNAME .
ok.example CNAME rpz-passthru.
data.example A 192.0.2.1
data.example A not-an-address
24.0.2.0.192.rpz-ip CNAME .
ns.example.rpz-nsdname CNAME .
com CNAME .
odd.example DNAME elsewhere.example.
"""

REGEX = """# comment
^ads[0-9]+[.]example$
tracker
/^pixel[.]/
(unclosed
with space
"""

#: Format -> text, the names in their order, how many lines were skipped for which reason, and how many names refuse it.
GOLDEN: dict[str, tuple[str, list[str], dict[str, int], int]] = {
    "domains": (
        DOMAINS,
        [
            "tiktok.com",
            "indented.example",
            "wild.example",
            "trailing.example",
            "xn--mnchen-3ya.example",
            "twice.example",
            "twice.example",
            "-dash-.example",
            "under_score.example",
        ],
        {
            "a character that is no letter, digit, '-', '_' or '.'": 1,
            "more than one word": 1,
            "a label of more than 63 octets": 1,
            "a public suffix": 1,
            "an empty label (two dots in a row, or one in front)": 1,
        },
        1,
    ),
    "hosts": (
        HOSTS,
        ["one.example", "two.example", "tabs.example", "six.example", "elsewhere.example"],
        {"the machine's own name": 2, "no name": 1, "not an address": 1},
        0,
    ),
    "adblock": (
        ADBLOCK,
        [
            "ads.example",
            "fine.ads.example",
            "all.example",
            "deny.example",
            "sub.deny.example",
            "one.example",
            "plain.example",
            "hosts.example",
        ],
        {
            "a modifier that is not honoured": 1,
            "switched off by a $badfilter": 1,
            "more than a name": 1,
            "a regular expression": 1,
            "a wildcard": 1,
            "a rule for what pages look like": 1,
        },
        0,
    ),
    "dnsmasq": (
        DNSMASQ,
        ["null.example", "six.example", "gone.example", "none.example", "kept.example", "a.example", "b.example"],
        {"an address of its own": 1, "a server of its own": 1, "no rule about names": 1},
        0,
    ),
    "rpz": (
        RPZ,
        ["bad.example", "bad.example", "ok.example", "data.example", "data.example"],
        {
            "a record whose data cannot be read": 1,
            "a record that is no action": 1,
            "a trigger of name servers, which a forwarder does not see": 1,
            "a public suffix": 1,
        },
        1,
    ),
}


def read(text: str, format: str) -> tuple[str, list[str], dict[str, int], int]:
    """Read a list; give its format, names, skipped lines by reason, and how many names no list may have."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(text)
        file.flush()
        spec: _native.List = {"file": file.name, "format": format, "is_hole": False, "public_suffix": False}
        report = read_list(spec, [], to_ascii, record_data)
        names, _ = list_names(spec, to_ascii)
    return report["format"], names, report["skipped"], report["refused"]


@pytest.mark.parametrize("format", sorted(GOLDEN))
def test_every_line_of_a_list_has_its_fate(format: str) -> None:
    """Declared or found out: the same names, and each other line is counted with its reason."""
    text, *wanted = GOLDEN[format]
    for declared in (format, "auto"):
        assert list(read(text, declared)) == [format, *wanted]


def test_expressions_are_kept_or_skipped() -> None:
    """They give no names; each that can be read is a pattern."""
    skipped = {
        "a regular expression that cannot be read": 1,
        "no expression of at most 200 printable characters": 1,
    }
    assert read(REGEX, "regex") == ("regex", [], skipped, 0)


@pytest.mark.parametrize("format", [*sorted(GOLDEN), "auto"])
def test_junk_is_skipped_and_counted(format: str) -> None:
    """Octets of any kind give no name, and take no reading down."""
    junk = "\x00\x01\x7f\n" * 50 + "<html>\n" * 50 + "\N{SNOWMAN}" * 300 + "\n"
    _, names, skipped, _ = read(junk, format)
    assert names == []
    assert sum(skipped.values()) == 101

"""What a browser shows at the sinkhole's address: which app, by whose decision, what it takes, how to be exempted.

Plain HTTP alone. For HTTPS we would need a certificate for somebody else's name, so nothing listens there: the browser
is refused at once, which is the truth.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from urllib.parse import quote

from blockd.transport.http import HttpListener, Request, Response

#: An office at nine o'clock; a page is one small answer.
MAX_CONNECTIONS, MAX_CONNECTIONS_OF_CLIENT = 1024, 64
MAX_HOST_CHARACTERS = 260


@dataclass(frozen=True)
class Blocked:
    """What is said about one blocked name; nothing about the device that asks."""

    name: str
    title: str
    owner: str | None
    takes: Mapping[str, str]
    decided_by: str | None
    contact: str | None
    exemption: str | None
    #: The set of apps by which the policy names the app, as people know it.
    set: str | None = None


#: Gives what is blocked for a host name and a client's address; none when it is not.
Lookup = Callable[[str, str], Blocked | None]

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--paper:#f6f7f9;--card:#fff;--line:#d8dee4;--mark:#b42318}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--soft:#9aa4af;--paper:#12161b;--card:#1b2127;--line:#333c46;--mark:#ff8a7a}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:1.05rem/1.55 system-ui,sans-serif}
main{max-width:40rem;margin:8vh auto;padding:2rem;background:var(--card);border:1px solid var(--line);
border-top:4px solid var(--mark);border-radius:.6rem}
h1{margin:0 0 .3rem;font-size:1.6rem;line-height:1.25}
h2{margin:1.6rem 0 .3rem;font-size:1rem}
p,ul,dl{margin:.3rem 0}
.name{color:var(--soft);overflow-wrap:anywhere}
dt{font-weight:600;margin-top:.4rem}
dd{margin:0;color:var(--soft)}
a{color:inherit}
@media(max-width:44rem){main{margin:0;min-height:100vh;border-radius:0;border-width:4px 0 0;padding:1.4rem}}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Cache-Control": "no-store",
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def page(blocked: Blocked | None) -> str:
    """Write the page; everything that comes from outside is escaped."""
    if blocked is None:
        return _html("Nothing is served here", "<p>This address answers for sites that this network blocks.</p>")
    title = escape(blocked.title)
    parts = [f'<p class="name">You asked for {escape(blocked.name)}.</p>']
    decided = escape(blocked.decided_by) if blocked.decided_by else "those who run this network"
    owner = f", which {escape(blocked.owner)} runs," if blocked.owner else ""
    by_set = f" It is one of the apps of {escape(blocked.set)} that are blocked." if blocked.set else ""
    decision = f"{decided} decided that {title}{owner} is not used on this device.{by_set}"
    parts.append(f"<h2>Whose decision is it?</h2><p>{decision}</p>")
    if blocked.takes:
        said: dict[str, list[str]] = {}
        for what, who in blocked.takes.items():
            said.setdefault(who, []).append(what)
        rows = "".join(
            f"<dt>{escape(', '.join(things).capitalize())}</dt><dd>{escape(who)}</dd>" for who, things in said.items()
        )
        parts.append(f"<h2>What does it take from a device?</h2><dl>{rows}</dl>")
    ask = escape(blocked.exemption) if blocked.exemption else "If you need it for your work, ask for an exemption."
    contact = _contact(blocked.contact, blocked.title)
    parts.append(f"<h2>Do you need it for your work?</h2><p>{ask}{contact}</p>")
    return _html(f"{title} is blocked on this network", "".join(parts))


def _contact(contact: str | None, title: str) -> str:
    if not contact:
        return ""
    # No other scheme is a link: javascript: would be one too.
    if contact.startswith("mailto:"):
        text = contact.removeprefix("mailto:")
        return f' <a href="{escape(contact)}?subject={quote(f"Exemption for {title}")}">{escape(text)}</a>'
    if contact.startswith(("https://", "http://", "tel:")):
        return f' <a href="{escape(contact)}">{escape(contact)}</a>'
    return f" {escape(contact)}"


def _html(heading: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{heading}</title><style>{STYLE}</style></head>"
        f"<body><main><h1>{heading}</h1>{body}</main></body></html>"
    )


class BlockPage:
    """The page, and how often it was seen. Any host is answered: browsers ask for the names that are blocked."""

    def __init__(self, lookup: Lookup) -> None:
        """``lookup`` is asked for each request."""
        self._lookup = lookup
        #: Requests by what they got.
        self.seen = {"blocked": 0, "other": 0}
        self.listener = HttpListener(self._answer, MAX_CONNECTIONS, MAX_CONNECTIONS_OF_CLIENT, keeps_alive=False)

    def _answer(self, request: Request) -> Response:
        """Answer any method: apps POST, and get the same refusal."""
        host = (request.host or "")[:MAX_HOST_CHARACTERS]
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
        blocked = self._lookup(name, request.client)
        self.seen["other" if blocked is None else "blocked"] += 1
        return Response(404 if blocked is None else 403, page(blocked).encode(), HEADERS)

"""A report as one page of HTML: no script, no picture from elsewhere, and it prints well."""

from __future__ import annotations

from html import escape
from typing import Any

from blockd.review.usage import columns

#: What is drawn, from the ground up -> colour, and words for it.
PARTS = {
    "monitor": ("#c98500", "let through, and counted"),
    "block": ("#b3261e", "refused"),
    "exempt": ("#1b6e53", "let through, exempt"),
    "allow": ("#5b7083", "allowed"),
}
WIDTH, HEIGHT = 700, 110

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2530; max-width: 760px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .2rem; border-top: 2px solid #1c2530; padding-top: .8rem; }
p { margin: .3rem 0; } .quiet { color: #5b6773; } .touch { font-size: 1.05rem; margin: .6rem 0; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; } caption { text-align: left; font-weight: 600; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid #d5dbe1; vertical-align: top; }
.t { white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } code { overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; margin: .5rem 0; } svg text { font-size: 10px; fill: #5b6773; }
.key span { display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 1em; }
@media print { body { margin: 0; max-width: none; } section { break-inside: avoid; } }
"""


def page(report: dict[str, Any]) -> str:
    """Write it; every word of it that came from elsewhere is escaped."""
    span = f"{escape(report['since'])} to {escape(report['until'])}; days are UTC"
    parts = [
        f"<h1>Apps under review</h1><p class=quiet>{span}</p>",
        _summary(report["apps"]),
        *(_app(app) for app in report["apps"] if app["groups"]),
        _candidates(report["candidates"]),
        _exemptions(report.get("exemptions", [])),
        _decisions(report.get("decisions", [])),
        "<p class=quiet>Counts are of DNS queries, which devices cache: they say that an app is used, not how much. "
        "Devices are told apart in groups that log decisions, and in no other. What goes by bare addresses is not seen "
        "here.</p>",
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Apps under review, {escape(report['until'])}</title><style>{STYLE}</style>\n"
        f"{chr(10).join(parts)}\n</html>\n"
    )


def _summary(apps: list[dict[str, Any]]) -> str:
    rows = []
    for app in apps:
        total = {key: sum(group["queries"].get(key, 0) for group in app["groups"]) for key in PARTS}
        touched = app["block_would_touch"]
        rows.append(
            [
                escape(app["title"]),
                escape(_standing(app)),
                *(f"{number:,}" if number else "" for number in columns(total)),
                "" if not touched["queries"] else _devices(touched["devices"]),
            ]
        )
    heads = ["App", "Policy", "n:Let through", "n:Refused", "n:Exempt", "n:Devices a block would touch"]
    return _table("", heads, rows)


def _standing(app: dict[str, Any]) -> str:
    words = {"block": "blocked for", "monitor": "monitored for", "allow": "allowed for"}
    said = [f"{words[key]} {', '.join(groups)}" for key, groups in app["standing"].items() if groups]
    return "; ".join(said) or "no policy names it"


def _devices(count: int | None) -> str:
    return "not told apart" if count is None else f"{count:,}"


def _moment(text: str) -> str:
    return f"<span class=t>{escape(text[:16].replace('T', ' '))}</span>"


def _app(app: dict[str, Any]) -> str:
    touched = app["block_would_touch"]
    owner = f", {escape(app['owner'])}" if app["owner"] else ""
    takes = "".join(
        f"<p>Takes {escape(what)} <span class=quiet>({escape(who)})</span></p>" for what, who in app["takes"].items()
    )
    effect = (
        f"<p class=touch>A block would have refused <b>{touched['queries']:,}</b> queries of "
        f"{escape(', '.join(touched['groups']))}; devices, where they are told apart: "
        f"<b>{_devices(touched['devices'])}</b>.</p>"
        if touched["queries"]
        else ""
    )
    rows = [
        [
            escape(group["group"]),
            *(f"{number:,}" if number else "" for number in columns(group["queries"])),
            _devices(group["devices"]),
            f"{_moment(group['first'])} to {_moment(group['last'])}",
        ]
        for group in app["groups"]
    ]
    heads = ["Group", "n:Let through", "n:Refused", "n:Exempt", "n:Devices", "First and last seen"]
    by_set = f" ({escape(app['set'])})" if app.get("set") else ""
    what = f"{escape(app['app'])}{by_set}{owner}; {escape(_standing(app))}"
    return (
        f"<section><h2>{escape(app['title'])}</h2><p class=quiet>{what}</p>"
        f"{takes}{effect}{_plot(app['trend'])}{_table('', heads, rows)}</section>"
    )


def _plot(trend: list[dict[str, Any]]) -> str:
    """Draw queries by day, one bar a day."""
    highest = max((sum(day.get(key, 0) for key in PARTS) for day in trend), default=0) or 1
    step = WIDTH / max(1, len(trend))
    bars = []
    for at, day in enumerate(trend):
        ground = float(HEIGHT)
        for key, (colour, _) in PARTS.items():
            if count := day.get(key, 0):
                tall = max(1.0, count / highest * HEIGHT)
                ground -= tall
                title = f"{day['day']}: {count} {key}"
                place = f"x='{at * step + step * 0.1:.1f}' y='{ground + 12:.1f}'"
                bars.append(
                    f"<rect {place} width='{step * 0.8:.1f}' height='{tall:.1f}' "
                    f"fill='{colour}'><title>{escape(title)}</title></rect>"
                )
    used = [key for key in PARTS if any(day.get(key) for day in trend)]
    keys = "".join(f"<span style='background:{PARTS[key][0]}'></span>{PARTS[key][1]}" for key in used)
    first, last = (trend[0]["day"], trend[-1]["day"]) if trend else ("", "")
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT + 28}' role=img aria-label='queries by day, at most {highest}'>"
        f"<text x='0' y='9'>{highest} a day</text>"
        f"<line x1='0' x2='{WIDTH}' y1='{HEIGHT + 12}' y2='{HEIGHT + 12}' stroke='#1c2530'/>"
        f"{''.join(bars)}<text x='0' y='{HEIGHT + 25}'>{escape(first)}</text>"
        f"<text x='{WIDTH}' y='{HEIGHT + 25}' text-anchor='end'>{escape(last)}</text></svg>"
        f"<p class='key quiet'>{keys}</p>"
    )


def _candidates(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    cells = [
        [f"<code>{escape(row['name'])}</code>", escape(row["app"]), str(row["queries"]), escape(row["last"][:10])]
        for row in rows
    ]
    text = "<p class=quiet>No rule knew them; what they resolved to belongs to the app.</p>"
    heads = ["Name", "Led to", "n:Queries", "Last seen"]
    return f"<section><h2>Candidates for the catalogue</h2>{text}{_table('', heads, cells)}</section>"


def _exemptions(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    keys = ("name", "device", "purpose", "clearance", "expires_at", "state")
    cells = [
        [
            *(escape(str(row[key])) for key in keys[:2]),
            escape(", ".join(row["apps"])),
            *(escape(str(row[key])) for key in keys[2:]),
        ]
        for row in rows
    ]
    heads = ["", "Device", "Apps", "Purpose", "Clearance", "Until", "State"]
    return f"<section><h2>Exemptions that held</h2>{_table('', heads, cells)}</section>"


def _decisions(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    cells = [
        [escape(str(row[key] or "")) for key in ("name", "app", "to", "reason", "by", "approver", "state")]
        for row in rows
    ]
    heads = ["", "App", "To", "Reason", "Decided by", "Approved by", "State"]
    return f"<section><h2>Decisions</h2>{_table('', heads, cells)}</section>"


def _table(caption: str, heads: list[str], rows: list[list[str]]) -> str:
    """Write a table; a head that begins with `n:` is of numbers. Cells are HTML."""
    kinds = [" class=n" if head.startswith("n:") else "" for head in heads]
    top = "".join(f"<th{kind}>{escape(head.removeprefix('n:'))}</th>" for head, kind in zip(heads, kinds, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{cell}</td>' for cell, kind in zip(row, kinds, strict=True))}</tr>" for row in rows
    )
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"

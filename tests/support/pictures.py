"""The pictures of docs/pictures: ``python -m tests.support.pictures [MINUTES|report]``; it needs Chromium and Node.

A real daemon in front of two upstreams is asked as a small department would ask it, and a real Prometheus scrapes it.
The dashboard is drawn by Grafana's own panel components (tests/pictures), the block page by a browser, the terminal
from what the commands write to one.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dns.exception
import dns.message
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from blockd.review.store import Store
from blockd.review.usage import Usage
from tests.support.daemon import BLOCKD, Blockd, free_port
from tests.support.dashboard import DASHBOARD, ROOT, Prometheus, filled_in, panels
from tests.support.people import ALICE, CAROL, ask_as, socket_for_all
from tests.support.questions import CORPORATE, GUEST, PERSONAL, ask
from tests.support.upstream import Asked, Reply, Upstream, answer

PICTURES = ROOT / "docs" / "pictures"
RENDERER = ROOT / "tests" / "pictures"
CHROMIUM = [
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
]
#: name -> how often it is asked, of all questions.
NAMES = {
    "www.example.org": 30,
    "mail.dept.example": 25,
    "www.tiktok.com": 6,
    "api16-normal.tiktokv.eu": 8,
    "p16.tiktokcdn.com": 5,
    "log.byteoversea.com": 4,
    "www.capcut.com": 2,
    "dns.google": 2,
    "www.temu.com": 3,
    "open.larksuite.com": 3,
    "mask.icloud.com": 1,
    "ads.example.net": 2,
}


def script(query: dns.message.Message, asked: Asked) -> Reply:
    """Answer with short lives, block a name as a filtering upstream does, be a little slow."""
    time.sleep(random.expovariate(1 / 0.006))
    if asked.name == "ads.example.net":
        return answer(query, "ads.example.net. 20 IN A 0.0.0.0")
    return answer(query, f"{asked.name}. {random.randint(5, 60)} IN A 192.0.2.1")


def department(directory: Path, upstreams: list[str], page_port: int) -> Blockd:
    """Give a daemon with a policy such as a department's."""
    blocks = ["tiktok", "bytedance", "bytedance-platform", "capcut", "lemon8", "encrypted-dns"]
    sinkhole = {"ipv4": "127.0.0.1"}
    policies = {
        "corporate": {
            "block": blocks,
            "monitor": ["temu"],
            "allow": ["lark"],
            "answer": "sinkhole",
            "sinkhole": sinkhole,
        },
        "guest": {"block": ["tiktok"], "monitor": ["temu", "capcut"]},
    }
    return Blockd(
        directory,
        upstreams,
        policies=policies,
        reload={"watch": True},
        answers={"organization": "The Department's security board", "contact": "mailto:security@dept.example"},
        block_page={
            "listen": [f"127.0.0.1:{page_port}"],
            "exemption": "Enforcement and online-harms teams are exempted case by case, with ministerial clearance. "
            "Ask your security team:",
        },
    )


def live(blockd: Blockd, seconds: float, first: Upstream) -> None:
    """Ask for some time: more at its middle, with reloads, and an upstream that fails for a while."""
    started = time.monotonic()
    names, weights = list(NAMES), list(NAMES.values())
    reloaded = 0
    while (now := (time.monotonic() - started) / seconds) < 1:
        first.script = (lambda query, asked: None) if 0.55 < now < 0.65 else script
        name = random.choices(names, weights)[0]
        if random.random() < 0.15:
            name = f"n{random.randrange(4000)}.example.org"
        client = random.choices([CORPORATE, PERSONAL, GUEST], [6, 3, 2])[0]
        with contextlib.suppress(OSError, dns.exception.Timeout):
            ask(blockd, name, client=client, tcp=random.random() < 0.03, timeout=3)
        if now > (reloaded + 1) / 4:
            reloaded += 1
            blockd.values["answers"]["ttl"] = 30 + reloaded
            blockd.write()
        time.sleep(0.012 + 0.02 * abs(now - 0.5))


def dashboard(prometheus: Prometheus, start: float, end: float, picture: Path) -> None:
    """Draw the dashboard with Grafana's panel components, from what Prometheus answers."""
    step = max(1.0, (end - start) / 240)
    data: dict[str, Any] = {"from": int(start * 1000), "to": int(end * 1000), "panels": {}}
    for panel in panels(json.loads(DASHBOARD.read_text())):
        series = []
        for target in panel["targets"]:
            query = filled_in(target["expr"], "10s", f"{int(end - start)}s")
            for one in prometheus.range(query, start, end, step):
                legend = target["legendFormat"]
                for label, value in one["metric"].items():
                    legend = legend.replace("{{" + label + "}}", value)
                series.append({"legend": legend, "points": [[at * 1000, float(value)] for at, value in one["values"]]})
        data["panels"][str(panel["id"])] = series
    build = ROOT / "build" / "pictures"
    build.mkdir(parents=True, exist_ok=True)
    for file in RENDERER.iterdir():
        (build / file.name).write_bytes(file.read_bytes())
    (build / "data.json").write_text(json.dumps(data).replace("NaN", "null"))
    subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "--legacy-peer-deps"], cwd=build, check=True
    )
    subprocess.run(["node", "render.mjs", str(DASHBOARD), "data.json", str(picture)], cwd=build, check=True)


def browser(url: str, picture: Path, width: int, height: int, *options: str) -> None:
    """Take a picture of a page."""
    with tempfile.TemporaryDirectory() as profile:
        command = [*CHROMIUM, f"--user-data-dir={profile}", f"--window-size={width},{height}", *options]
        subprocess.run([*command, f"--screenshot={picture}", url], check=True, capture_output=True, timeout=60)


def terminal(words: list[str], shown: str, picture: Path, rows: int, places: dict[str, str]) -> None:
    """Run a command on a terminal, and draw what it wrote there; places of this machine become usual ones."""
    columns = 132
    parent, child = pty.openpty()
    environment = {
        **os.environ,
        "TERM": "xterm-256color",
        "COLUMNS": str(columns),
        "LINES": "50",
        "COLORTERM": "truecolor",
    }
    process = subprocess.Popen([*BLOCKD, *words], stdout=child, stderr=child, stdin=child, env=environment)
    os.close(child)
    written = b""
    try:
        while chunk := os.read(parent, 65536):
            written += chunk
    except OSError:
        pass
    os.close(parent)
    process.wait(20)
    console = Console(record=True, width=columns, file=io.StringIO(), force_terminal=True)
    text = written.decode().replace("\r\n", "\n")
    for ours, usual in places.items():
        text = text.replace(ours, usual)
    console.print(Text.from_ansi(f"$ {shown}\n{text}"))
    text = console.export_html(inline_styles=True, code_format="{code}", theme=MONOKAI)
    style = "body{margin:0;background:#12161b;color:#e6e9ed}pre{margin:16px;font:14px/1.45 monospace}"
    page = f"<meta charset=utf-8><style>{style}</style><pre>{text}</pre>"
    with tempfile.NamedTemporaryFile("w", suffix=".html") as file:
        file.write(page)
        file.flush()
        browser(f"file://{file.name}", picture, 32 + int(columns * 8.45), 32 + int(rows * 20.4))


def month(store: Store) -> None:
    """Keep thirty days of a department that nobody has: what its resolvers would have counted, day by day."""
    rng, usage, totals = random.Random(5), Usage(), Counter[tuple[str, str, str]]()
    midnight = time.time() // 86_400 * 86_400
    for day in range(30):
        for hour in (9, 11, 14, 16):
            at = midnight - (29 - day) * 86_400 + hour * 3_600
            is_weekend = time.gmtime(at).tm_wday >= 5
            for group, app, action, most in (
                ("corporate", "temu", "monitor", 20 + 3 * day),
                ("corporate", "tiktok", "block", 60 - day),
                ("corporate", "tiktok", "exempt", 12 if day > 17 else 0),
                ("guest", "temu", "monitor", 30),
                ("personal", "temu", "monitor", 90),
            ):
                totals[group, app, action] += rng.randrange(most + 1) // (5 if is_weekend else 1)
            usage.count(totals, at)
            for number in range(rng.randrange(4 + day // 2)):
                usage.saw("temu", "corporate", "monitor", f"SER-{4700 + number}", at)
            for number in range(rng.randrange(12)):
                usage.saw("tiktok", "corporate", "block", f"SER-{4740 + number}", at)
    for name in ("img-eu.shopcdn.example", "px.partner.example"):
        for number in range(40):
            usage.led(name, "temu", f"SER-{4700 + number}", 5, midnight)
    store.keep(usage.take(), 0, ["corporate", "guest"])


def report(directory: Path, upstream: str) -> None:
    """Have a report written of that month, and its picture taken."""
    policies = {"corporate": {"block": ["tiktok"], "monitor": ["temu"]}, "guest": {"monitor": ["temu"]}}
    policies["personal"] = {"monitor": ["temu"]}
    with socket_for_all() as place:
        people = {"teams": {"cyber-security": [ALICE]}, "requesters": [CAROL], "mitigations": ["dedicated device"]}
        blockd = Blockd(directory, [upstream], admin={"socket": str(place)}, exemptions=people, policies=policies)
        (directory / "devices.csv").write_text("address,hostname,serial\n127.0.0.41,laptop-7,SER-4711\n")
        blockd.values["groups"]["corporate"]["inventory"] = [{"file": "devices.csv"}]
        blockd.write()
        with blockd:
            ends = (datetime.now(UTC) + timedelta(days=5)).isoformat()
            asked = {
                "device": "SER-4711",
                "apps": ["tiktok"],
                "purpose": "online harms casework",
                "team": "cyber-security",
            }
            asked |= {"clearance": "MIN-2026-014", "mitigations": ["dedicated device"], "expires_at": ends}
            name = ask_as(CAROL, place, "request", **asked)["exemption"]["name"]
            ask_as(ALICE, place, "approve", exemption=name)
            reason = "takes contacts; 20 of our devices, no business use"
            ask_as(CAROL, place, "decide", app="temu", to="block", reason=reason)
            store = Store(f"sqlite:///{directory / 'state' / 'usage.db'}")
            month(store)
            store.close()
            page = directory / "report.html"
            assert blockd.run("report", "--since", "30d", "--html", str(page)).returncode == 0
            # People of this machine have other names where blockd runs.
            page.write_text(page.read_text().replace(f">{CAROL}<", ">carol<").replace(f">{ALICE}<", ">alice<"))
            browser(f"file://{page}", PICTURES / "report.png", 820, 1900)
            blockd.stop()


def main() -> None:
    """Make them all, or the report's alone."""
    if sys.argv[1:] == ["report"]:
        with tempfile.TemporaryDirectory() as place, Upstream(script) as upstream:
            report(Path(place), upstream.address)
        return
    seconds = 60 * float(sys.argv[1] if len(sys.argv) > 1 else 6)
    PICTURES.mkdir(exist_ok=True)
    page_port = free_port()
    with tempfile.TemporaryDirectory() as place, Upstream(script) as first, Upstream(script) as second:
        directory = Path(place)
        with (
            department(directory, [first.address, second.address], page_port) as blockd,
            Prometheus(directory, f"127.0.0.1:{blockd.admin}") as prometheus,
        ):
            start = time.time()
            live(blockd, seconds, first)
            dashboard(prometheus, start + 12, time.time() - 2, PICTURES / "dashboard.png")
            resolve = f"--host-resolver-rules=MAP * 127.0.0.1:{page_port}"
            # musical.ly, since browsers know tiktok.com to be HTTPS alone, and do not ask.
            browser("http://www.musical.ly/", PICTURES / "block-page.png", 1000, 760, resolve)
            browser("http://www.musical.ly/", PICTURES / "block-page-phone.png", 500, 980, resolve)
            config = ["--config", str(blockd.file)]
            shots = {"explain --client 127.0.0.1 vm.tiktok.com": 14, "status": 34, "top --count 1": 22}
            places = {f"{ROOT}/": "", str(directory): "/etc/blockd"}
            still = threading.Thread(target=live, args=(blockd, 12, first))
            still.start()
            for words, rows in shots.items():
                picture = PICTURES / f"{words.split()[0]}.png"
                terminal([*words.split(), *config], f"blockd {words}", picture, rows, places)
            still.join()
        (directory / "review").mkdir()
        report(directory / "review", first.address)


if __name__ == "__main__":
    main()

"""README and docs: every command in them runs, every session is what happens; `BLOCKD_RECORD=1` writes it anew."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from blockd.settings.load import load_settings
from blockd.settings.source import Disk
from tests.support.builds import one_build
from tests.support.daemon import Blockd
from tests.support.questions import CORPORATE, ask, rcode
from tests.support.upstream import Upstream

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SESSION = re.compile(
    r"(<!-- session: tests/test_docs.py[^>]*-->\n\n```console\n)(.*?)(```\n\n<!-- end of session -->)", re.DOTALL
)
SESSIONS = [
    (page.relative_to(ROOT).as_posix(), at)
    for page in PAGES
    for at in range(len(SESSION.findall(page.read_text() if page.exists() else "")))
]


def normalise(text: str) -> str:
    """Take out what differs between runs."""
    text = re.sub(r"id: \d+", "id: 4711", text)
    text = re.sub(r"rules generation \d+, views generation \d+", "rules generation 2, views generation 2", text)
    text = re.sub(r"\d+ (?:s|min|h|d)\b[^\n]* ago$", "2 min ago", text, flags=re.MULTILINE)
    text = re.sub(r"@\[[\d.]+\]", "@[1700000000]", text)
    return re.sub(r"with \d+ threads", "with 2 threads", text)


def record(directory: Path, commands: list[str]) -> str:
    """Run a session in namespaces of its own: network, and a mount for /etc/resolv.conf."""
    spaces = ["unshare", "--net", "--mount"] if os.geteuid() == 0 else ["unshare", "-r", "--net", "--mount"]
    command = [*spaces, sys.executable, "-m", "tests.support.session", str(directory)]
    done = subprocess.run(
        command, input=json.dumps(commands), capture_output=True, text=True, check=False, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return normalise(done.stdout)


@pytest.mark.parametrize(("page", "at"), SESSIONS)
def test_a_session_is_what_happens(page: str, at: int, tmp_path: Path) -> None:
    """Commands and output, character by character."""
    found = list(SESSION.finditer((ROOT / page).read_text()))[at]
    commands = [line.removeprefix("$ ") for line in found[2].splitlines() if line.startswith("$ ")]
    happened = record(tmp_path, commands)
    if os.environ.get("BLOCKD_RECORD"):
        text = (ROOT / page).read_text()
        (ROOT / page).write_text(text.replace(found[0], found[1] + happened + found[3]))
        return
    assert found[2] == happened


def test_the_first_session_shows_what_it_claims() -> None:
    """Blocked for one and open for the other, explained, reloaded, counted, and seen by Prometheus."""
    session = SESSION.search(README.read_text())
    assert session is not None
    for words in (
        "status: NXDOMAIN",
        "EDE: 15 (Blocked): (TikTok is blocked by policy on this network; ask mailto:security@dept.example)",
        "192.0.2.7",
        "set       @bytedance",
        "verdict   block (tiktok)",
        "capcut: suffix capcut.com",
        'blockd_decisions_total{action="block", app="department", group="corporate", instance="127.0.0.1:9153", '
        'job="blockd"} => 1 @[',
    ):
        assert words in session[2], words


def test_every_command_is_run_by_a_test() -> None:
    """A block of commands is a session, or says which test runs it; that test exists and reads the page."""
    for page in PAGES:
        text = page.read_text()
        for block in re.finditer(r"^```(?:sh|console|bash)\n", text, re.MULTILINE):
            before = text[: block.start()].rstrip().splitlines()[-1]
            marker = re.fullmatch(r"<!-- (?:session: |commands: )([\w/.]+)(?: .*)? -->", before)
            assert marker is not None, f"{page}: {text[block.start() : block.start() + 80]!r}"
            assert (ROOT / marker[1]).exists(), f"{page}: {marker[1]}"


def test_every_yaml_block_is_good_config(tmp_path: Path) -> None:
    """What the pages show as config is taken, beside what the sample has."""
    count = 0
    for page in PAGES:
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            values: dict[str, Any] = yaml.safe_load((ROOT / "config" / "blockd.yaml").read_text())
            for section, part in yaml.safe_load(block).items():
                values[section] = {**values.get(section, {}), **part}
            file = tmp_path / "blockd.yaml"
            file.write_text(yaml.safe_dump(values))
            load_settings(file, Disk())
            count += 1
    assert count > 0


def test_links_and_make_targets_exist() -> None:
    """Every link of every page leads to a file, or a heading of it; every make target named is one."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if link.startswith(("http", "mailto:")):
                continue
            file, _, anchor = link.partition("#")
            place = page.parent / file if file else page
            assert place.exists(), f"{page}: {link}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", place.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{page}: {link}"
        for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", text, re.MULTILINE):
            assert set(target) - {""} <= targets, f"{page}: {target}"


def test_pictures_are_there() -> None:
    """Of the dashboard, the block page and the terminal, and each is shown somewhere."""
    shown = " ".join(page.read_text() for page in PAGES)
    pictures = sorted((ROOT / "docs" / "pictures").glob("*.png"))
    assert {"dashboard.png", "block-page.png", "block-page-phone.png", "status.png", "explain.png", "top.png"} <= {
        picture.name for picture in pictures
    }
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert f"pictures/{picture.name}" in shown, picture.name


def test_generated_pages_are_up_to_date() -> None:
    """docs/configuration.md and docs/metrics.md say what the code says."""
    from tests.support import reference

    assert (ROOT / "docs" / "configuration.md").read_text() == reference.configuration()
    assert (ROOT / "docs" / "metrics.md").read_text() == reference.metrics()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_commands_without_the_package_work(tmp_path: Path, upstream: Upstream) -> None:
    """Each line of the block in docs/placement.md, with paths of our own in place of /opt and /etc."""
    blockd = Blockd(tmp_path, [upstream.address])
    page = (ROOT / "docs" / "placement.md").read_text()
    block = re.search(r"## Without the package\n\n<!--.*?-->\n\n```sh\n(.*?)```", page, re.DOTALL)
    assert block is not None
    lines = [line.split("  #")[0].strip() for line in block.group(1).splitlines()]
    assert len(lines) == 3
    places = {"/opt/blockd": str(tmp_path / "venv"), "/etc/blockd/blockd.yaml": str(blockd.file)}
    for usual, ours in places.items():
        lines = [line.replace(usual, ours) for line in lines]
    install, check, serve = lines
    with one_build():
        subprocess.run(["bash", "-ec", install], cwd=ROOT, check=True, capture_output=True, timeout=400)
    checked = subprocess.run(["bash", "-ec", check], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "corporate: block bytedance-platform, canary-names, tiktok" in checked.stdout
    with (tmp_path / "serve.log").open("w") as log:
        daemon = subprocess.Popen(["bash", "-ec", f"exec {serve}"], cwd=tmp_path, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while "metrics on" not in (tmp_path / "serve.log").read_text():
            assert time.monotonic() < deadline
            assert daemon.poll() is None
            time.sleep(0.05)
        assert rcode(ask(blockd, "tiktok.com", client=CORPORATE)) == "NXDOMAIN"
    finally:
        daemon.terminate()
        assert daemon.wait(10) == 0

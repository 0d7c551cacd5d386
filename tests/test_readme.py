"""README's session, line by line, in a network of its own with a real NSD; `BLOCKD_RECORD=1` writes it anew."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.builds import one_build
from tests.support.daemon import Blockd
from tests.support.questions import CORPORATE, ask, rcode
from tests.support.upstream import Upstream

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SESSION = re.compile(r"(<!-- session:.*?-->\n\n```console\n)(.*?)(```\n\n<!-- end of session -->)", re.DOTALL)

COMMANDS = """\
make run &
dig -b 127.0.0.1 @127.0.0.1 -p 5353 www.tiktok.com +noall +comments    # a corporate device
dig -b 127.0.0.2 @127.0.0.1 -p 5353 www.tiktok.com +short              # a personal one beside it
dig -b 127.0.0.1 @127.0.0.1 -p 5353 news.example +short                # hides behind a CNAME
dig -b 127.0.0.2 @127.0.0.1 -p 5353 news.example +short                # out of the same cache
.venv/bin/blockd explain --config config/blockd.yaml --client 127.0.0.1 news.example
echo games.example >> config/apps/department.txt
.venv/bin/blockd reload --config config/blockd.yaml
dig -b 127.0.0.1 @127.0.0.1 -p 5353 www.games.example +noall +comments | grep EDE
curl -s http://127.0.0.1:9153/metrics | grep '^blockd_decisions_total'
""".splitlines()


def normalise(text: str) -> str:
    """Take out what differs between runs."""
    text = re.sub(r"id: \d+", "id: 4711", text)
    return re.sub(r"with \d+ threads", "with 2 threads", text)


def record(directory: Path) -> str:
    """Run the session in namespaces of its own: network, and a mount for /etc/resolv.conf."""
    spaces = ["unshare", "--net", "--mount"] if os.geteuid() == 0 else ["unshare", "-r", "--net", "--mount"]
    command = [*spaces, sys.executable, "-m", "tests.support.session", str(directory)]
    done = subprocess.run(
        command, input=json.dumps(COMMANDS), capture_output=True, text=True, check=False, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return normalise(done.stdout)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Record it once."""
    return record(tmp_path_factory.mktemp("session"))


def test_the_session_in_the_readme_is_what_happens(session: str) -> None:
    """Output and commands, character by character."""
    found = SESSION.search(README.read_text())
    assert found is not None
    if os.environ.get("BLOCKD_RECORD"):
        README.write_text(README.read_text().replace(found.group(0), found.group(1) + session + found.group(3)))
        return
    assert found.group(2) == session


def test_the_session_shows_what_it_claims(session: str) -> None:
    """Blocked for one and open for the other, explained, reloaded, counted."""
    assert "status: NXDOMAIN" in session
    assert (
        "EDE: 15 (Blocked): (TikTok is blocked by policy on this network; ask mailto:security@dept.example)" in session
    )
    assert "192.0.2.7" in session
    assert "verdict   block (tiktok)" in session
    assert 'blockd_decisions_total{action="block",app="department",group="corporate"} 1.0' in session


def test_links_and_make_targets_exist() -> None:
    """Every link of every page leads to a file, every make target named is one."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in [README, *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text()
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), f"{page}: {link}"
        for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", text, re.MULTILINE):
            assert set(target) - {""} <= targets, f"{page}: {target}"


def test_generated_pages_are_up_to_date() -> None:
    """docs/configuration.md and docs/metrics.md say what the code says."""
    from tests.support import reference

    assert (ROOT / "docs" / "configuration.md").read_text() == reference.configuration()
    assert (ROOT / "docs" / "metrics.md").read_text() == reference.metrics()


@pytest.mark.timeout(900)
def test_the_commands_that_deploy_work(tmp_path: Path, upstream: Upstream) -> None:
    """Each line of the README's block, with paths of our own in place of /opt and /etc."""
    blockd = Blockd(tmp_path, [upstream.address])
    block = re.search(r"## Deploy\n\n```sh\n(.*?)```", README.read_text(), re.DOTALL)
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

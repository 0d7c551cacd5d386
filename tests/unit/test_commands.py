"""The operator's commands: readable on a terminal, plain in a pipe, JSON when asked, exit codes as documented."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from blockd.cli import COMMANDS
from blockd.cli.output import complain, print_rows, print_table, say
from tests.conftest import Serve
from tests.support import warm
from tests.support.daemon import BLOCKD
from tests.support.questions import CORPORATE, PERSONAL, ask, rcode
from tests.support.upstream import Upstream

ESCAPE = "\x1b"
TOO_FAR = ["exempt", "request", "--until", "9" * 400 + "d"]
TOO_FAR += [
    word for key in ("device", "app", "purpose", "team", "clearance", "mitigation") for word in (f"--{key}", "x")
]


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a pipe."""
    return warm.run(words, environment)


def on_a_terminal(*words: str, seconds: float = 0, columns: int = 120) -> str:
    """Run a command on a terminal of its own, interrupt it after so long if it does not end; give what it shows."""
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40"}
    process = subprocess.Popen([*BLOCKD, *words], stdin=child, stdout=child, stderr=child, env=environment)
    os.close(child)
    if seconds:
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
    shown = b""
    try:
        while chunk := os.read(parent, 65536):
            shown += chunk
    except OSError:
        # The other end is closed: the command ended.
        pass
    os.close(parent)
    assert process.wait(20) == 0
    return shown.decode(errors="replace")


#: Every command that an ordinary user could try, as it is tried with a config.
TRIED = [
    ["serve"],
    ["check"],
    ["check", "--json"],
    ["compile", "--output", "out"],
    ["reload"],
    ["reload", "--dry-run"],
    ["explain", "--client", "127.0.0.1", "www.tiktok.com"],
    ["apps"],
    ["lists"],
    ["lists", "fetch"],
    ["lists", "rollback"],
    ["rpz", "export", "--group", "corporate"],
    ["devices"],
    ["devices", "who", "127.0.0.1"],
    ["exempt", "list"],
    ["report"],
    ["report", "--html", "page.html"],
    ["egress"],
    ["egress", "status"],
    ["egress", "plan"],
    ["egress", "off"],
    ["egress", "on"],
    ["status"],
    ["status", "--json"],
    ["top", "--json"],
]


def test_an_ordinary_user_gets_one_line(serve: Serve, upstream: Upstream) -> None:
    """With a config that cannot be read, and with one that can beside state and sockets that cannot: never a trace."""
    blockd = serve([upstream.address])
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        place.chmod(0o755)
        state = str(blockd.directory / "state")
        values = {
            **blockd.values,
            "admin": {**blockd.values["admin"], "socket": str(blockd.directory / "control.sock")},
            "state": {"directory": state},
            "apps": {},
            "egress": {"enabled": True, "socket": str(blockd.directory / "egress.sock")},
        }
        open_config = place / "blockd.yaml"
        open_config.write_text(yaml.safe_dump(values))
        for config in (blockd.file, open_config):
            for words in TRIED:
                done = warm.run([*words, "--config", str(config)], user="nobody")
                said = f"{words} {config}: exit {done.returncode}\n{done.stdout[-500:]}{done.stderr}"
                assert "Traceback" not in done.stderr, said
                assert "failed unexpectedly" not in done.stdout + done.stderr, said
                assert done.returncode in (0, 1, 2), said
                if done.returncode == 1:
                    assert 1 <= len((done.stderr or done.stdout).splitlines()) <= 3 or "--json" in words, said
    done = warm.run(["check", "--config", str(blockd.file)], user="nobody")
    assert done.stderr.endswith("; let the daemon's user read it, or run the command as that user or root\n"), (
        done.stderr
    )
    assert rcode(ask(blockd, "www.tiktok.com", client=CORPORATE)) == "NXDOMAIN"


def test_status_is_one_screen(serve: Serve, upstream: Upstream) -> None:
    """Version, config, policy, cache, upstreams, groups, decisions; exit code 1 when something is wrong."""
    blockd = serve([upstream.address])
    for client in (CORPORATE, PERSONAL, PERSONAL):
        ask(blockd, "tiktok.com", client=client)
    done = blockd.run("status")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ESCAPE not in done.stdout
    text = done.stdout
    assert len(text.splitlines()) < 40
    for pattern in (
        r"^blockd    0\.1\.0, up \d+ s, 2 threads$",
        rf"^config    {blockd.file}: in force$",
        r"^policy    \d+ names of 3 apps, \d+ s old, generation 00000001 \(rules 1, views 1\)$",
        r"^queries   3 by UDP, 0 by TCP, 0 waiting$",
        rf"^{upstream.address} +up +(?:[\d.]+ ms|-) +1 +1 +0 +0$",
        r"^corporate +- +bytedance-platform, canary-names, tiktok +- +-$",
        r"^corporate +tiktok +block +1$",
    ):
        assert re.search(pattern, text, re.MULTILINE), (pattern, text)
    state = json.loads(blockd.run("status", "--json").stdout)
    assert state["totals"]["queries.udp"] == 3
    assert state["wrong"] == []
    shown = on_a_terminal("status", "--config", str(blockd.file))
    assert ESCAPE in shown
    assert "canary-names" in shown
    blockd.file.write_text("nonsense")
    blockd.hangup()
    deadline = time.monotonic() + 10
    while blockd.ready()["config_in_force"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    wrong = run("status", "--socket", str(blockd.directory / "control.sock"))
    assert wrong.returncode == 1
    assert "NOT IN FORCE" in wrong.stdout
    assert "expected keys and values" in wrong.stdout
    blockd.stop()
    gone = run("status", "--socket", str(blockd.directory / "control.sock"))
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "no daemon answers" in gone.stderr


def test_top_shows_rates(serve: Serve, upstream: Upstream) -> None:
    """Once in a pipe, for ever on a terminal until Ctrl-C; as JSON a line a look."""
    blockd = serve([upstream.address])
    place = ["--config", str(blockd.file)]
    process = subprocess.Popen(
        [*BLOCKD, "top", *place, "--interval", "1.5", "--json"], stdout=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        ask(blockd, "tiktok.com", client=CORPORATE)
        time.sleep(0.01)
    assert process.stdout is not None
    rate = json.loads(process.stdout.read())
    process.stdout.close()
    assert process.wait(10) == 0
    (blocks,) = [d for d in rate["decisions"] if d["app"] == "tiktok"]
    assert 10 < blocks["rate"] < 200
    assert blocks["rate"] == pytest.approx(rate["rates"]["queries.udp"], rel=0.2)
    plain = run("top", *place, "--interval", "0.2", "--count", "2")
    assert plain.returncode == 0
    assert len(re.findall("queries/s by UDP", plain.stdout)) == 2
    assert ESCAPE not in plain.stdout
    shown = on_a_terminal("top", *place, "--interval", "0.2", seconds=2.5)
    assert "queries/s by UDP" in shown
    assert "tiktok" in shown


def test_apps_lists_shows_and_finds(serve: Serve, upstream: Upstream) -> None:
    """Rules, live or not, who blocks it; one app with its evidence; which rules of which file match a name, and why."""
    blockd = serve([upstream.address], apps={"own": {"suffixes": ["own.example"], "evidence": {"own.example": "ours"}}})
    blockd.values["policies"]["corporate"]["block"].append("own")
    blockd.write()
    place = ["--config", str(blockd.file)]
    text = run("apps", *place).stdout
    assert re.search(r"^tiktok +TikTok +\d+ +live +corporate +guest +-$", text, re.MULTILINE), text
    assert re.search(r"^temu +Temu +6 +- +- +- +-$", text, re.MULTILINE)
    assert re.search(r"^own +Own +1 +live +corporate +- +-$", text, re.MULTILINE)
    listed = {app["app"]: app for app in json.loads(run("apps", "--json", *place).stdout)}
    assert listed["tiktok"]["groups"] == {"block": ["corporate"], "monitor": ["guest"]}
    shown = run("apps", "show", "tiktok").stdout
    assert "takes     contacts (Cabinet Office, statement of 16 March 2023" in shown
    assert "needs     bytedance-platform" in shown
    assert "  tiktok.com  # first party" in shown
    assert "suffixes (" in shown
    assert "71.18.0.0/16" in run("apps", "show", "bytedance-platform").stdout
    found = run("apps", "which", "www.capcut.com").stdout
    assert re.match(r"capcut: suffix capcut\.com \(.*/builtin/capcut\.yaml:\d+\)\n  named by", found), found
    both = json.loads(run("apps", "which", "--json", "lemon8-api.tiktokv.com").stdout)["matches"]
    assert [(match["app"], match["kind"]) for match in both] == [("lemon8", "host"), ("tiktok", "suffix")]
    own = run("apps", "which", "a.own.example", *place).stdout
    assert "own: suffix own.example" in own
    assert "ours\n  block for corporate" in own
    assert run("apps", "which", "nottiktok.com").stdout == "nottiktok.com: no rule of any app matches\n"
    for words, reason in ((["show", "tictoc"], "there is no app tictoc"), (["which", "a..b"], "an empty label")):
        done = run("apps", *words)
        assert done.returncode == 1
        assert reason in done.stderr


def test_explain_is_coloured_for_people_alone(serve: Serve, upstream: Upstream) -> None:
    """The same text on a terminal and in a pipe."""
    blockd = serve([upstream.address])
    words = ["explain", "--config", str(blockd.file), "--client", CORPORATE, "vm.tiktok.com"]
    piped = run(*words).stdout
    shown = on_a_terminal(*words, columns=400)
    assert ESCAPE in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r\n", "\n")
    assert [line.rstrip() for line in plain.splitlines()] == piped.splitlines()
    assert "masks     asked 0x4, found 0x0, block 0x7" in piped


def test_the_config_is_found_where_it_usually_is(serve: Serve, upstream: Upstream) -> None:
    """BLOCKD_CONFIG names it; with nothing at all, the command line is wrong and says so."""
    blockd = serve([upstream.address])
    done = run("explain", "--client", CORPORATE, "tiktok.com", BLOCKD_CONFIG=str(blockd.file))
    assert "verdict   block (tiktok)" in done.stdout
    if not Path("/etc/blockd/blockd.yaml").exists():
        lost = run("check")
        assert lost.returncode == 2
        assert "give --config F, or set BLOCKD_CONFIG" in lost.stderr


def test_what_is_printed_steers_no_terminal_and_ends_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever a file or a peer has in a value: a line stays a line."""
    odd = "a\x1b[2J\u202e\ud800"
    say(odd)
    print_rows([("device", odd)])
    print_table(["DEVICE"], [[odd + "\n"]])
    complain(odd)
    printed = capsys.readouterr()
    assert printed.err == "a\\x1b[2J\\u202e\\ud800\n"
    assert printed.out.count("a\\x1b[2J\\u202e\\ud800") == 3
    assert len(printed.out.splitlines()) == 4
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from blockd.cli import main; main(['--version']); print('\\ud800')"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout.splitlines()[1:] == ["\\ud800"], done.stderr


def test_exit_codes_are_those_of_the_docs() -> None:
    """0 done, 1 no, 2 the command line is wrong."""
    assert run("--version").returncode == 0
    assert run("--help").returncode == 0
    assert run("check", "--config", "/nonexistent").returncode == 1
    for words in (["nonsense"], ["check", "--nonsense"], ["explain"], ["top", "--interval", "0"], TOO_FAR):
        assert run(*words).returncode == 2, words
    for command in COMMANDS:
        done = run(command, "--help")
        assert done.returncode == 0, command
        assert "Usage: blockd " in done.stdout


def test_shells_complete() -> None:
    """The script for bash names every command, and completion offers options and commands."""
    program = Path(sys.executable).with_name("blockd")
    environment = {**os.environ, "_BLOCKD_COMPLETE": "complete_bash", "COMP_WORDS": "blockd ", "COMP_CWORD": "1"}
    offered = subprocess.run([program], capture_output=True, text=True, check=True, env=environment).stdout.split()
    assert set(COMMANDS) <= set(offered)
    script = run("--show-completion", "bash", SHELL="/bin/bash")
    assert "complete" in script.stdout


def test_schemas_are_published_and_fit() -> None:
    """config/*.schema.json are what the command prints; the sample config and our apps validate against them."""
    import jsonschema
    import yaml

    root = Path(__file__).parents[2]
    for of, files in (("config", ["config/blockd.yaml"]), ("app", ["config/apps/department.yaml", *_builtin()])):
        printed = run("schema", of).stdout
        published = root / "config" / f"{of}.schema.json"
        assert published.read_text() == printed, f"blockd schema {of} > {published}"
        schema = json.loads(printed)
        jsonschema.Draft202012Validator.check_schema(schema)
        for file in files:
            text = (root / file).read_text()
            jsonschema.validate(yaml.safe_load(text), schema)
    first = (root / "config" / "blockd.yaml").read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=config.schema.json"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"sever": {}}, json.loads(run("schema", "config").stdout))


def _builtin() -> list[str]:
    return [f"blockd/apps/builtin/{path.name}" for path in Path("blockd/apps/builtin").glob("*.yaml")]

"""Reloads and restarts: all or nothing, the last good policy always on disk."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from blockd.settings.document import find_scalar
from tests.conftest import Serve
from tests.support.daemon import BLOCKD, Blockd, free_port
from tests.support.questions import CORPORATE, PERSONAL, ask, rcode
from tests.support.upstream import Upstream


def test_both_ways_to_reload_are_the_same(serve: Serve, upstream: Upstream) -> None:
    """SIGHUP and the command take the config in; the command prints the generations."""
    blockd = serve([upstream.address])
    blockd.values["policies"]["personal"] = {"block": ["tiktok"]}
    done = blockd.reload()
    assert done.stdout == "reloaded: rules generation 1, views generation 2\n", "rules are the same, views are not"
    assert rcode(ask(blockd, "tiktok.com", client=PERSONAL)) == "NXDOMAIN"
    blockd.values["policies"]["personal"] = {}
    blockd.write()
    blockd.hangup()
    deadline = time.monotonic() + 10
    while blockd.ready()["views_generation"] != 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    upstream.records["tiktok.com"] = ["tiktok.com. 60 IN A 192.0.2.1"]
    assert rcode(ask(blockd, "tiktok.com", client=PERSONAL)) == "NOERROR"
    blockd.write_app("other", suffixes=["other.example"])
    blockd.values["policies"]["personal"] = {"block": ["other"]}
    blockd.write()
    done = blockd.run("reload", "--json")
    assert json.loads(done.stdout) == {"ok": True, "problems": [], "rules_generation": 2, "views_generation": 4}
    assert blockd.metric("blockd_config_reloads_total", result="success") == 3


@pytest.mark.parametrize(
    ("key", "section", "change"),
    [
        ("server.listen", "server", lambda: {"listen": [f"127.0.0.1:{free_port()}"]}),
        ("server.threads", "server", lambda: {"threads": 1}),
        ("admin.listen", "admin", lambda: {"listen": f"127.0.0.1:{free_port()}"}),
        ("admin.socket", "admin", lambda: {"socket": "other.sock"}),
        ("state.directory", "state", lambda: {"directory": "elsewhere"}),
        ("cache.size_mb", "cache", lambda: {"size_mb": 9}),
    ],
)
def test_a_key_that_needs_a_restart_refuses_the_reload(
    key: str, section: str, change: object, serve: Serve, upstream: Upstream
) -> None:
    """It is named with its line, and nothing else of the reload is taken in."""
    blockd = serve([upstream.address])
    blockd.values[section].update(change())  # type: ignore[operator]
    blockd.values["policies"]["personal"] = {"block": ["tiktok"]}
    blockd.write()
    command = [*BLOCKD, "reload", "--socket", str(blockd.directory / "control.sock")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"{key}: changed, and only a restart takes it in" in done.stderr
    assert rcode(ask(blockd, "tiktok.com", client=PERSONAL)) == "NXDOMAIN", "from upstream: no such name"
    assert blockd.metric("blockd_decisions_total", group="personal", action="block") == 0
    assert blockd.metric("blockd_config_last_reload_successful") == 0


@pytest.mark.parametrize(
    "text",
    [
        "state: {directory: /s}\nnonsense",
        "state:\n  directory: '/s'\nnonsense: [",
        '{"state": {"directory": "/s"}}',
        '{\n "state": {\n  "directory": "/s"\n }\n}',
        '"state":\n  "directory": /s  # here\n',
        "  state:\n    directory: /s\n",
    ],
)
def test_the_state_is_found_however_a_config_is_written(tmp_path: Path, text: str) -> None:
    """So that a start finds the last good inputs, when an inventory or the config itself cannot be used."""
    (tmp_path / "blockd.yaml").write_text(text)
    assert find_scalar(tmp_path / "blockd.yaml", "state", "directory") == "/s"


def test_a_broken_config_at_start_runs_the_last_good_inputs(serve: Serve, upstream: Upstream) -> None:
    """Whole, loudly, and /readyz says so; when the config is mended, a reload takes it in."""
    blockd = serve([upstream.address])
    blockd.write_app("extra", suffixes=["extra.example"])
    blockd.values["policies"]["corporate"]["block"].append("extra")
    assert blockd.reload().returncode == 0
    blockd.stop()
    blockd.file.write_text(blockd.file.read_text() + "nonsense: 1\n")
    (blockd.directory / "apps" / "extra.yaml").write_text("app: extra\n")
    blockd.start()
    assert "THE CONFIG IS NOT IN FORCE" in blockd.log.read_text()
    assert rcode(ask(blockd, "extra.example", client=CORPORATE)) == "NXDOMAIN"
    assert blockd.metric("blockd_decisions_total", app="extra", action="block") == 1
    ready = blockd.ready()
    assert ready["config_in_force"] is False
    assert any("nonsense: unknown key" in problem for problem in ready["problems"])
    assert blockd.metric("blockd_config_last_reload_successful") == 0
    blockd.write_app("extra", suffixes=["extra.example"])
    assert blockd.reload().returncode == 0
    assert blockd.ready()["config_in_force"] is True


def test_a_broken_config_that_no_state_knows_is_fatal(tmp_path: Path, upstream: Upstream) -> None:
    """Nothing was ever accepted for it: the start ends with the reason."""
    blockd = Blockd(tmp_path, [upstream.address])
    blockd.file.write_text(blockd.file.read_text() + "nonsense: 1\n")
    with pytest.raises(AssertionError, match=r"nonsense: unknown key"):
        blockd.start()


def test_a_restart_compiles_nothing(serve: Serve, upstream: Upstream) -> None:
    """Equal inputs start from the snapshot on disk."""
    blockd = serve([upstream.address])
    generation = blockd.ready()["generation"]
    blockd.stop()
    blockd.start()
    assert blockd.ready()["generation"] == generation
    blockd.stop()
    blockd.values["answers"]["ttl"] = 31
    blockd.write()
    blockd.start()
    assert blockd.ready()["generation"] > generation
    assert ask(blockd, "tiktok.com", client=CORPORATE).authority[0].ttl == 31


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_snapshot_is_made_anew(damage: str, serve: Serve, upstream: Upstream) -> None:
    """What fails its digest is not believed; the inputs are still there."""
    blockd = serve([upstream.address])
    blockd.stop()
    snapshot = (blockd.directory / "state" / "current").resolve() / "snapshot"
    data = bytearray(snapshot.read_bytes())
    if damage == "cut":
        snapshot.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        data[len(data) // 2] ^= 1
        snapshot.write_bytes(data)
    else:
        snapshot.unlink()
    blockd.start()
    assert rcode(ask(blockd, "tiktok.com", client=CORPORATE)) == "NXDOMAIN"


def test_generations_on_disk_are_few(serve: Serve, upstream: Upstream) -> None:
    """Old ones go; refused ones leave nothing."""
    blockd = serve([upstream.address])
    for ttl in range(40, 46):
        blockd.values["answers"]["ttl"] = ttl
        assert blockd.reload().returncode == 0
    good = blockd.file.read_text()
    blockd.file.write_text(good + "x: 1\n")
    assert blockd.run("reload").returncode == 1
    blockd.file.write_text(good)
    assert len(list((blockd.directory / "state" / "generations").iterdir())) == 3


def test_who_does_not_answer_gives_way(serve: Serve, upstream: Upstream) -> None:
    """Serve threads keep their niceness, Python has more, a compile most; and it ends with its daemon."""
    blockd = serve([upstream.address])
    (blockd.directory / "long.txt").write_text("".join(f"n{at}.invalid\n" for at in range(1_000_000)))
    blockd.write_app("long", suffixes=[], lists=[{"file": str(blockd.directory / "long.txt"), "format": "domains"}])
    blockd.values["policies"]["corporate"]["block"].append("long")
    blockd.write()
    assert blockd.process is not None
    tasks = Path(f"/proc/{blockd.process.pid}/task")
    own = os.getpriority(os.PRIO_PROCESS, 0)
    nice = {(task / "comm").read_text().strip(): niceness(task) - own for task in tasks.iterdir()}
    assert {value for name, value in nice.items() if name.startswith("blockd-serve")} == {0}
    assert niceness(tasks / str(blockd.process.pid)) - own == 5
    blockd.hangup()
    compiles: list[Path] = []
    for _ in range(200):
        found = (tasks / str(task) / "children" for task in os.listdir(tasks))
        compiles = [Path(f"/proc/{pid}") for file in found for pid in file.read_text().split()]
        if compiles and niceness(compiles[0]) - own == 10:
            break
        time.sleep(0.01)
    assert [niceness(path) - own for path in compiles] == [10]
    blockd.process.kill()
    blockd.process.wait()
    blockd.process = None
    # One that was only about to begin looks whether its parent is there.
    for _ in range(1_000):
        if not compiles[0].exists() or " Z " in (compiles[0] / "stat").read_text():
            break
        time.sleep(0.01)
    else:
        pytest.fail("the compile outlived its daemon")


def niceness(task: Path) -> int:
    """Read the niceness of a process or thread."""
    return int((task / "stat").read_text().rpartition(")")[2].split()[16])


def test_reloads_at_once_end_with_the_newest(serve: Serve, upstream: Upstream) -> None:
    """Ten commands at the same time: all succeed, few compile, the last written config is in force."""
    blockd = serve([upstream.address])
    blockd.values["answers"]["ttl"] = 77
    blockd.write()
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(blockd.run("reload").returncode)) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [0] * 10
    assert ask(blockd, "tiktok.com", client=CORPORATE).authority[0].ttl == 77
    assert blockd.ready()["views_generation"] <= 11


def test_a_state_directory_that_cannot_be_is_fatal(tmp_path: Path, upstream: Upstream) -> None:
    """The key, the path and what to do."""
    (tmp_path / "file").write_text("")
    blockd = Blockd(tmp_path, [upstream.address], state={"directory": "file/x"})
    with pytest.raises(
        AssertionError, match=r"state.directory: .*file/x: Not a directory; correct it, or name another"
    ):
        blockd.start()


def test_the_control_socket_takes_commands_and_no_more(serve: Serve, upstream: Upstream) -> None:
    """Rubbish gets an error; its mode keeps others out; without a daemon the command says so."""
    blockd = serve([upstream.address])
    path = blockd.directory / "control.sock"
    assert path.stat().st_mode & 0o777 == 0o600
    for line in (b"rubbish\n", b'{"command": "rm"}\n', b"[]\n", b'"x"\n'):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(line)
            answer = json.loads(client.recv(65536))
        assert answer["ok"] is False
        assert "expected one of these commands: reload, ready, status" in answer["error"]
        assert "explain" in answer["error"]
    blockd.stop()
    done = blockd.run("reload")
    assert done.returncode == 1
    assert f"no daemon answers at {path}" in done.stderr
    assert not path.exists()


def test_a_state_that_was_deleted_is_made_again(serve: Serve, upstream: Upstream) -> None:
    """Somebody's rm -rf under a running daemon: reloads go on."""
    blockd = serve([upstream.address])
    shutil.rmtree(blockd.directory / "state" / "generations")
    blockd.values["answers"]["ttl"] = 55
    assert blockd.reload().returncode == 0
    assert ask(blockd, "tiktok.com", client=CORPORATE).authority[0].ttl == 55


def test_a_disk_that_refuses_is_a_refused_reload(serve: Serve, upstream: Upstream) -> None:
    """Where the state cannot be written, the reload says so, and the next one works."""
    blockd = serve([upstream.address])
    generations = blockd.directory / "state" / "generations"
    moved = generations.rename(generations.with_name("moved"))
    generations.write_text("in the way")
    failed = blockd.reload()
    assert failed.returncode == 1
    assert "nothing was changed" in failed.stderr
    assert "Traceback" not in failed.stderr
    generations.unlink()
    moved.rename(generations)
    assert blockd.reload().returncode == 0


def test_hangups_during_the_start_are_nothing_to_die_of(tmp_path: Path, upstream: Upstream) -> None:
    """A supervisor that reloads too early."""
    blockd = Blockd(tmp_path, [upstream.address])
    command = [*BLOCKD, "serve", "--config", str(blockd.file)]
    with blockd.log.open("w") as log:
        blockd.process = subprocess.Popen(command, stderr=log, stdout=log, text=True)
    time.sleep(0.4)
    deadline = time.monotonic() + 20
    while "metrics on" not in blockd.log.read_text():
        blockd.hangup()
        assert blockd.process.poll() is None, blockd.log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    blockd.stop()


def test_a_socket_that_a_killed_daemon_left_is_taken_over(serve: Serve, upstream: Upstream) -> None:
    """With or without its lock, whoever has its process number now."""
    blockd = serve([upstream.address])
    assert blockd.process is not None
    blockd.process.kill()
    blockd.process.wait()
    assert (blockd.directory / "control.sock").exists()
    blockd.start()
    assert blockd.run("reload").returncode == 0


def test_the_working_directory_holds_no_modules_of_ours(serve: Serve, upstream: Upstream) -> None:
    """A file called idna.py where the daemon was started does not run in its compiler."""
    blockd = serve([upstream.address])
    blockd.stop()
    (blockd.directory / "idna.py").write_text("raise SystemExit('hijacked')")
    before = os.getcwd()
    os.chdir(blockd.directory)
    try:
        blockd.values["answers"]["ttl"] = 56
        blockd.write()
        blockd.start(prefix=["env", "PYTHONSAFEPATH=1"])
    finally:
        os.chdir(before)
    blockd.values["answers"]["ttl"] = 57
    assert blockd.reload().returncode == 0

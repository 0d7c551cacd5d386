"""kill -9 at named points of a reload: the next start has one whole generation, before or after, never a mixture."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Blockd
from tests.support.questions import CORPORATE, ask, rcode
from tests.support.upstream import Asked, Reply, Upstream, answer

HOOK = Path(__file__).parents[1] / "support" / "killed"

OLDEST = "the oldest generation is removed"
#: What happens there -> process, audit event, and what it is about.
POINTS = {
    "a compile is started": "daemon|subprocess.Popen|blockd.compiling",
    "the compile makes its directory": r"compile|os.mkdir|generations/\d+\.\d+\.new ",
    "the compile makes the directory of inputs": r"compile|os.mkdir|\.new/inputs ",
    "the config is read": "compile|open|blockd.yaml r ",
    "the apps are listed": "compile|os.scandir|apps",
    "an app is read": "compile|open|flip.yaml r ",
    "a list is read": "compile|open|flip.txt r ",
    "a list is copied": r"compile|open|inputs/0000-flip.txt w ",
    "the snapshot is there, and its inputs are written": r"compile|open|inputs/\d+-blockd.yaml w ",
    "the inputs are brought to the disk": r"compile|open|inputs/\d+-blockd.yaml r ",
    "the manifest is written": r"compile|open|\.new/manifest.json w ",
    "the manifest is brought to the disk": r"compile|open|\.new/manifest.json r ",
    "the generation gets its name": r"compile|os.rename|\.new .*generations/\d+ ",
    "what the compile leaves is removed": r"compile|shutil.rmtree|\.new ",
    "the daemon reads the manifest": r"daemon|open|generations/\d+/manifest.json",
    "the daemon reads the kept config": r"daemon|open|inputs/\d+-blockd.yaml",
    "a link that was left is removed": r"daemon|os.remove|current.new",
    "the link is made": r"daemon|os.symlink|current.new",
    "the link takes its place": r"daemon|os.rename|current.new .*current ",
    "the link is brought to the disk": r"daemon|open|state None",
    OLDEST: r"daemon|shutil.rmtree|generations/\d+ ",
    "a refused candidate is removed": r"daemon|shutil.rmtree|staged ",
}


def any_address(query: Any, asked: Asked) -> Reply:
    """Answer every question."""
    return answer(query, f"{asked.name}. 300 IN A 192.0.2.1")


@pytest.mark.timeout(400)
def test_killed_at_any_point_it_starts_with_one_whole_generation(
    tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty-two of them, each on what the one before left; a broken config makes each start use what is kept."""
    upstream.script = any_address
    blockd = Blockd(tmp_path, [upstream.address])
    flip, names = tmp_path / "apps" / "flip.txt", ("a.flip.example", "b.flip.example")

    def write(turn: int) -> None:
        flip.write_text("".join(f"{turn}.{name}\n" for name in names))

    write(-1)
    blockd.write_app("flip", lists=[{"file": "flip.txt"}])
    blockd.values["policies"]["corporate"]["block"].append("flip")
    blockd.write()
    good = blockd.file.read_text()
    named = tmp_path / "point"
    monkeypatch.setenv("PYTHONPATH", str(HOOK))
    monkeypatch.setenv("BLOCKD_KILL_AT", str(named))
    blockd.start()
    last = -1
    with ExitStack() as stack:
        stack.callback(blockd.stop)
        for turn, (what, point) in enumerate(POINTS.items()):
            assert blockd.process is not None
            if what == OLDEST:
                # As many as are kept must be there.
                write(last := turn + 100)
                assert blockd.run("reload").returncode == 0
            write(turn)
            named.write_text(point)
            blockd.hangup()
            assert blockd.process.wait(60) == -signal.SIGKILL, what
            named.unlink()
            blockd.file.write_text(good + "nonsense: 1\n")
            blockd.start()
            answers = {
                number: {rcode(ask(blockd, f"{number}.{name}", client=CORPORATE)) for name in names}
                for number in (last, turn)
            }
            whole = [number for number, said in answers.items() if said == {"NXDOMAIN"}]
            assert len(whole) == 1, (what, answers)
            assert all(said == {"NOERROR"} for number, said in answers.items() if number != whole[0]), (what, answers)
            last = whole[0]
            left = {path.name for path in (tmp_path / "state" / "generations").iterdir()}
            assert not [name for name in left if name.endswith(".new")], (what, left)
            assert len(left) <= 4, (what, left)
            blockd.file.write_text(good)
        assert blockd.run("reload").returncode == 0
        assert rcode(ask(blockd, f"{turn}.{names[0]}", client=CORPORATE)) == "NXDOMAIN"

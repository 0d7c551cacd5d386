"""Users of this machine, who call the daemon as themselves."""

from __future__ import annotations

import json
import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blockd.control import ask

#: Users that every Debian has: who requests, who approves, who has no part in it, and who requests alone.
CAROL, ALICE, BOB, MALLORY, DAVE = "games", "mail", "news", "nobody", "lp"


def ask_as(user: str, socket: Path, do: str, **values: Any) -> dict[str, Any]:
    """Send a command of `blockd exempt` as a user; give the answer."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            entry = pwd.getpwnam(user)
            if os.geteuid() != entry.pw_uid:
                os.setgroups([])
                os.setgid(entry.pw_gid)
                os.setuid(entry.pw_uid)
            os.write(writing, json.dumps(ask(socket, "exempt", do=do, **values)).encode())
        except BaseException as error:  # noqa: BLE001  a forked test must not go on as one
            os.write(writing, json.dumps({"ok": False, "error": f"{type(error).__name__}: {error}"}).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    answer: dict[str, Any] = json.loads(text)
    return answer


@contextmanager
def socket_for_all() -> Iterator[Path]:
    """Give a place for a control socket that every user can reach: pytest's own directories are root's alone."""
    with tempfile.TemporaryDirectory(prefix="blockd-") as directory:
        Path(directory).chmod(0o711)
        yield Path(directory) / "control.sock"

"""The CLI's side of the control socket."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from blockd.problems import os_text

#: Seconds; longer than the daemon gives a compile, so that it is the daemon that says what happened.
PATIENCE = 660.0


#: Seconds that the daemon has to accept a connection, while its queue of them is full.
CONNECT_SECONDS = 5.0


class ControlError(Exception):
    """No daemon answers there."""


def ask(path: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """Send one command, give the answer. ControlError when no daemon listens or it goes away."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE)
            _connect(connection, path)
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        answer = json.loads(received)
    except PermissionError:
        text = "this user may not use it; run the command as root or as the daemon's user"
        raise ControlError(f"{path}: {text}") from None
    except OSError as error:
        raise ControlError(f"no daemon answers at {path}: {os_text(error)}") from None
    except ValueError as error:
        raise ControlError(f"the answer at {path} is not a blockd daemon's: {error}") from None
    if not isinstance(answer, dict):
        raise ControlError(f"what answers at {path} is no blockd")
    return answer


def _connect(connection: socket.socket, path: Path) -> None:
    """Connect; a full queue, which any user can fill for a moment, is tried again."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            connection.connect(str(path))
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.02)
        else:
            return

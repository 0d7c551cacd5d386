"""The CLI's side of the control socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

#: Seconds; longer than the daemon gives a compile, so that it is the daemon that says what happened.
PATIENCE = 660.0


class ControlError(Exception):
    """No daemon answers there."""


def ask(path: Path, command: str, **arguments: Any) -> dict[str, Any]:
    """Send one command, give the answer. ControlError when no daemon listens or it goes away."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(path))
            connection.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        answer = json.loads(received)
    except (OSError, ValueError) as error:
        raise ControlError(f"no daemon answers at {path}: {error}") from None
    if not isinstance(answer, dict):
        raise ControlError(f"what answers at {path} is no blockd")
    return answer

"""Kea's control socket, for leases that it keeps in a database: one command a connection, JSON (Kea ARM, 18.3)."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

#: Seconds for an answer, leases of a page, and pages of a reading: ten million leases.
PATIENCE, PAGE, MOST = 5.0, 5_000, 2_000
#: Octets of one answer.
MAX_OCTETS = 64 << 20
#: Results: done, no such command, nothing found.
DONE, UNKNOWN, EMPTY = 0, 2, 3


class KeaReader:
    """Reads all leases by pages (hook library `lease_cmds`), not more often than it may."""

    def __init__(self, socket_path: Path, every: float) -> None:
        """`every` is seconds between two readings."""
        self._path, self._every = socket_path, every
        self._next = 0.0
        #: 4 or 6, once the server has said which it is.
        self._version: int | None = None

    def read(self) -> list[dict[str, Any]] | None:
        """Give every lease as Kea writes it; None when it is not time yet. It may wait.

        OSError or ValueError says what is wrong.
        """
        if time.monotonic() < self._next:
            return None
        try:
            return self._pages()
        except (KeyError, TypeError) as error:
            raise ValueError(f"what it says is not Kea's: {error}") from None
        finally:
            self._next = time.monotonic() + self._every

    def _pages(self) -> list[dict[str, Any]]:
        leases: list[dict[str, Any]] = []
        start = "start"
        for _ in range(MOST):
            page = self._page(start)
            leases += page
            if len(page) < PAGE:
                return leases
            start = str(page[-1]["ip-address"])
        raise ValueError(f"has more than {MOST * PAGE} leases")

    def _page(self, start: str) -> list[dict[str, Any]]:
        answer: dict[str, Any] = {}
        for version in (4, 6) if self._version is None else (self._version,):
            answer = self._ask(f"lease{version}-get-page", {"from": start, "limit": PAGE})
            if answer["result"] in (DONE, EMPTY):
                self._version = version
                return list(answer["arguments"]["leases"]) if answer["result"] == DONE else []
            if answer["result"] != UNKNOWN:
                break
        hint = "; it needs the hook library lease_cmds" if answer["result"] == UNKNOWN else ""
        raise ValueError(f"Kea says: {str(answer.get('text'))[:200]}{hint}")

    def _ask(self, command: str, arguments: dict[str, Any]) -> dict[str, Any]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            deadline = time.monotonic() + PATIENCE
            connection.settimeout(PATIENCE)
            connection.connect(str(self._path))
            connection.sendall(json.dumps({"command": command, "arguments": arguments}).encode())
            received = bytearray()
            while chunk := connection.recv(1 << 16):
                received += chunk
                # One clock for all of an answer, and not one for each octet.
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                if len(received) > MAX_OCTETS:
                    raise ValueError(f"its answer is longer than {MAX_OCTETS >> 20} MiB")
        answer = json.loads(received)
        if not isinstance(answer, dict) or not isinstance(answer.get("result"), int):
            raise ValueError("what answers there is not Kea")
        return answer

"""Kea's control socket, for leases that it keeps in a database: one command a connection, JSON (Kea ARM, 18.3)."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from blockd.settings.values import read_digits

#: Seconds for an answer, leases of a page, and pages of a reading: ten million leases.
PATIENCE, PAGE, MOST = 5.0, 5_000, 2_000
#: What is wrong with an answer that is not Kea's.
STRANGER = "what answers there is not Kea"
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

    def read(self) -> Iterator[Any] | None:
        """Give every lease as Kea writes it, page by page; None when it is not time yet. It may wait.

        OSError or ValueError says what is wrong, before the first lease or between two.
        """
        if time.monotonic() < self._next:
            return None
        # Also when nobody reads to the end: a server that fails is not asked without pause.
        self._next = time.monotonic() + self._every
        return self._leases()

    def _leases(self) -> Iterator[Any]:
        start = "start"
        for _ in range(MOST):
            page = self._page(start)
            yield from page
            self._next = time.monotonic() + self._every
            if len(page) < PAGE:
                return
            # The next page begins behind the last address; a row that has none must not keep the others away.
            last = next(filter(None, map(_address, reversed(page))), start)
            if last == start:
                raise ValueError("its pages do not go on: the last address of one is not behind the one before")
            start = last
        raise ValueError(f"has more than {MOST * PAGE} leases")

    def _page(self, start: str) -> list[Any]:
        answer: dict[str, Any] = {}
        for version in (4, 6) if self._version is None else (self._version,):
            answer = self._ask(f"lease{version}-get-page", {"from": start, "limit": PAGE})
            if answer["result"] in (DONE, EMPTY):
                self._version = version
                return _rows(answer) if answer["result"] == DONE else []
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
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"it did not answer whole within {PATIENCE:g} s")
                connection.settimeout(left)
                if len(received) > MAX_OCTETS:
                    raise ValueError(f"its answer is longer than {MAX_OCTETS >> 20} MiB")
        try:
            # A hostname is what its client wrote: one with other octets must not keep all leases away.
            answer = json.loads(received.decode(errors="replace"), strict=False, parse_int=read_digits)
        except (ValueError, RecursionError):
            raise ValueError(f"its answer of {len(received)} octets is cut, or it is not Kea") from None
        if not isinstance(answer, dict) or not isinstance(answer.get("result"), int):
            raise ValueError(STRANGER)
        return answer


def _rows(answer: dict[str, Any]) -> list[Any]:
    arguments = answer.get("arguments")
    rows = arguments.get("leases") if isinstance(arguments, dict) else None
    if not isinstance(rows, list):
        raise ValueError(STRANGER)
    return rows


def _address(row: Any) -> str | None:
    address = row.get("ip-address") if isinstance(row, dict) else None
    try:
        return str(ip_address(address)) if isinstance(address, str) else None
    except ValueError:
        return None

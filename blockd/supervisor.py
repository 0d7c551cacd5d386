"""What systemd and daemons say to each other: sockets handed over, ready, reloading, alive (sd_notify(3))."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import MutableMapping

from blockd.problems import StartError

#: The first descriptor that a supervisor hands over (sd_listen_fds(3)).
FIRST_DESCRIPTOR = 3


class Supervisor:
    """Tells the one that started us how we do; says nothing where nobody listens."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Read, and take out, what the supervisor put into the environment: children are not meant.

        StartError when it does not hand over what it says.
        """
        self._address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "0")
        #: Whether it wants to hear that we live.
        self.has_watchdog = microseconds.isdigit() and int(microseconds) > 0
        self.sockets = _sockets(environment)

    def tell(self, *lines: str) -> None:
        """Send a message; a supervisor that is gone is no reason to stop."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as way:
                # A supervisor that does not read must not keep the daemon waiting.
                way.setblocking(False)
                way.connect(address)
                way.send("\n".join(lines).encode())
        except OSError:
            return

    def ready(self, status: str) -> None:
        """Say that queries are answered, and by what."""
        self.tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that a reload began; :meth:`ready` ends it, whatever came of it."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def alive(self) -> None:
        """Feed the watchdog."""
        if self.has_watchdog:
            self.tell("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that no more queries are taken."""
        self.tell("STOPPING=1")


def _sockets(environment: MutableMapping[str, str]) -> list[socket.socket]:
    process, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", "")
    if process != str(os.getpid()):
        return []
    if not re.fullmatch("[0-9]{1,4}", count):
        raise StartError(f"LISTEN_FDS={count!r}: expected the number of sockets that are handed over")
    sockets = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)):
        try:
            os.set_inheritable(descriptor, False)
            sockets.append(socket.socket(fileno=descriptor))
        except OSError as error:
            text = f"descriptor {descriptor} is no socket: {error.strerror}"
            raise StartError(
                f"LISTEN_FDS={count}: {text}; start blockd by blockd.socket, or without LISTEN_FDS"
            ) from None
    return sockets

"""The daemon's side of the control socket. Whoever may open it, may command: its mode is 0600."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import ServerFactory
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure

Command = Callable[[dict[str, Any]], "dict[str, Any] | Deferred[dict[str, Any]]"]

#: Seconds to send a command; the answer may take longer.
IDLE = 10


class _Conversation(LineReceiver, TimeoutMixin):
    delimiter = b"\n"
    MAX_LENGTH = 65536
    transport: Any

    def __init__(self, commands: Mapping[str, Command]) -> None:
        self._commands = commands

    def connectionMade(self) -> None:
        self.setTimeout(IDLE)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.setTimeout(None)

    def lineReceived(self, line: bytes) -> None:
        self.setTimeout(None)
        try:
            request = json.loads(line)
            command = self._commands[request["command"]]
        except (ValueError, TypeError, KeyError, RecursionError):
            self._send({"ok": False, "error": f"expected one of these commands: {', '.join(self._commands)}"})
            return
        maybeDeferred(command, request).addCallbacks(self._send, self._failed)

    def _failed(self, failure: Failure) -> None:
        self._send({"ok": False, "error": failure.getErrorMessage()})

    def _send(self, answer: dict[str, Any]) -> None:
        self.sendLine(json.dumps(answer).encode())
        self.transport.loseConnection()


class ControlFactory(ServerFactory):
    """Answers commands."""

    noisy = False

    def __init__(self, commands: Mapping[str, Command]) -> None:
        """``commands`` by name; each gets the request and gives the answer."""
        self._commands = commands

    def buildProtocol(self, addr: IAddress | None) -> _Conversation:
        """Begin a conversation."""
        return _Conversation(self._commands)

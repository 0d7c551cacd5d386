"""The daemon's side of the control socket: operators may do everything, people what is theirs alone."""

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

from blockd.control.caller import Caller, caller_of

Command = Callable[[dict[str, Any]], "dict[str, Any] | Deferred[dict[str, Any]]"]
#: One that judges itself what its caller may.
OpenCommand = Callable[[dict[str, Any], Caller], "dict[str, Any] | Deferred[dict[str, Any]]"]

#: Seconds to send a command; the answer may take longer.
IDLE = 10


class _Conversation(LineReceiver, TimeoutMixin):
    delimiter = b"\n"
    MAX_LENGTH = 65536
    transport: Any

    def __init__(self, commands: Mapping[str, Command], open_commands: Mapping[str, OpenCommand]) -> None:
        self._commands, self._open = commands, open_commands

    def connectionMade(self) -> None:
        self.setTimeout(IDLE)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.setTimeout(None)

    def lineReceived(self, line: bytes) -> None:
        self.setTimeout(None)
        try:
            request = json.loads(line)
            name = request["command"]
            known = name in self._open or self._commands[name] is not None
        except (ValueError, TypeError, KeyError, RecursionError):
            known = False
        if not known:
            names = ", ".join([*self._commands, *self._open])
            self._send({"ok": False, "error": f"expected one of these commands: {names}"})
            return
        caller = caller_of(self.transport.getHandle())
        if name in self._open:
            answer = maybeDeferred(self._open[name], request, caller)
        elif caller.is_operator:
            answer = maybeDeferred(self._commands[name], request)
        else:
            self._send({"ok": False, "error": f"{name} is for root, and {caller.name} is not"})
            return
        answer.addCallbacks(self._send, self._failed)

    def _failed(self, failure: Failure) -> None:
        self._send({"ok": False, "error": failure.getErrorMessage()})

    def _send(self, answer: dict[str, Any]) -> None:
        self.sendLine(json.dumps(answer).encode())
        self.transport.loseConnection()


class ControlFactory(ServerFactory):
    """Answers commands."""

    noisy = False

    def __init__(self, commands: Mapping[str, Command], open_commands: Mapping[str, OpenCommand]) -> None:
        """``commands`` by name, for operators; ``open_commands`` for whoever calls. Each answers a request."""
        self._commands, self._open = commands, open_commands

    def buildProtocol(self, addr: IAddress | None) -> _Conversation:
        """Begin a conversation."""
        return _Conversation(self._commands, self._open)

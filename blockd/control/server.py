"""The daemon's side of the control socket: operators may do everything, people what is theirs alone."""

from __future__ import annotations

import json
from collections import Counter
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

#: Connections at once: in all, of users who are no operators, of one of them.
CONNECTIONS, CONNECTIONS_OF_USERS, CONNECTIONS_A_USER = 256, 64, 4
#: Seconds to send a command, in all; the answer may take longer. And seconds to read the answer.
IDLE, READ_SECONDS = 5, 10


class _Conversation(LineReceiver, TimeoutMixin):
    delimiter = b"\n"
    MAX_LENGTH = 65536
    transport: Any

    def __init__(self, factory: ControlFactory) -> None:
        self._factory = factory
        self._commands, self._open = factory.commands, factory.open_commands
        self._caller: Caller | None = None
        self._is_asked = self._is_at_work = self._is_lost = False

    def connectionMade(self) -> None:
        # One clock for the whole command: nothing that arrives sets it back.
        self.setTimeout(IDLE)
        try:
            caller = caller_of(self.transport.getHandle())
        except OSError:
            self.transport.abortConnection()
            return
        if not self._factory.admits(caller):
            self._send({"ok": False, "error": "too many commands are under way"})
            return
        self._caller = caller

    def timeoutConnection(self) -> None:
        # Not closed in peace: a peer that does not read would keep it open.
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        self.setTimeout(None)
        self._is_lost = True
        self._leave()

    def _leave(self) -> None:
        """Give the share back, once nobody is connected and nothing is done any more."""
        if self._caller is not None and self._is_lost and not self._is_at_work:
            self._factory.gone(self._caller)
            self._caller = None

    def lineReceived(self, line: bytes) -> None:
        # One command a connection: who sends more at once must not have them done at once.
        if self._is_asked or self._caller is None:
            return
        self._is_asked = True
        self.transport.pauseProducing()
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
        if name not in self._open and not self._caller.is_operator:
            self._send({"ok": False, "error": f"{name} is for root alone"})
            return
        # What goes on counts with its caller, also when the connection is gone.
        self._is_at_work = True
        if name in self._open:
            answer = maybeDeferred(self._open[name], request, self._caller)
        else:
            answer = maybeDeferred(self._commands[name], request)
        answer.addCallbacks(self._send, self._failed).addBoth(self._done)

    def _done(self, _: object) -> None:
        self._is_at_work = False
        self._leave()

    def _failed(self, failure: Failure) -> None:
        self._send({"ok": False, "error": failure.getErrorMessage()})

    def _send(self, answer: dict[str, Any]) -> None:
        if self._is_lost:
            return
        self.setTimeout(READ_SECONDS)
        self.sendLine(json.dumps(answer).encode())
        self.transport.loseConnection()


class ControlFactory(ServerFactory):
    """Answers commands."""

    noisy = False

    def __init__(self, commands: Mapping[str, Command], open_commands: Mapping[str, OpenCommand]) -> None:
        """``commands`` by name, for operators; ``open_commands`` for whoever calls. Each answers a request."""
        self.commands, self.open_commands = commands, open_commands
        self._connections: Counter[int] = Counter()

    def admits(self, caller: Caller) -> bool:
        """Count a connection; False when there are too many, of all or of one user who is no operator."""
        if self._connections.total() >= CONNECTIONS:
            return False
        if not caller.is_operator and (
            self._connections[caller.uid] >= CONNECTIONS_A_USER
            or sum(self._connections[uid] for uid in self._connections if uid != 0) >= CONNECTIONS_OF_USERS
        ):
            return False
        self._connections[caller.uid] += 1
        return True

    def gone(self, caller: Caller) -> None:
        """Count a connection out."""
        self._connections[caller.uid] -= 1
        if not self._connections[caller.uid]:
            del self._connections[caller.uid]

    def buildProtocol(self, addr: IAddress | None) -> _Conversation:
        """Begin a conversation."""
        return _Conversation(self)

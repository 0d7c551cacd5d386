"""Who is at the other end of the control socket: the kernel says, and nobody else is asked."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """A user of this machine."""

    uid: int
    gid: int

    @property
    def name(self) -> str:
        """Give the user's name."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"

    @property
    def identity(self) -> str:
        """Give name and number: a user who is renamed stays the same, and so does a number that is given anew."""
        return f"{self.name}:{self.uid}"

    @property
    def is_operator(self) -> bool:
        """Say whether it may do all that the daemon can be told to do: root, and the daemon's own user."""
        return self.uid in (0, os.geteuid())

    def is_among(self, users: Iterable[str]) -> bool:
        """Say whether it is one of these users, or in one of these groups, written with an @."""
        groups = {self.gid}
        with suppress(KeyError, OSError):
            groups |= set(os.getgrouplist(self.name, self.gid))
        names = {self.name}
        for gid in groups:
            with suppress(KeyError):
                names.add(f"@{grp.getgrgid(gid).gr_name}")
        return not names.isdisjoint(users)


def caller_of(connection: socket.socket) -> Caller:
    """Read the peer's credentials, as they were when it connected (SO_PEERCRED, unix(7))."""
    layout = struct.Struct("3i")
    _, uid, gid = layout.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, layout.size))
    return Caller(uid, gid)

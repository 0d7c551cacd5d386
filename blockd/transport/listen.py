"""Opens listening sockets, or takes those that a supervisor opened; every failure says what to do."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from twisted.internet import unix
from twisted.internet.tcp import Port

from blockd.problems import StartError

Endpoint = tuple[IPv4Address | IPv6Address, int]
BACKLOG = 1024
#: Connections that are accepted in one turn of the reactor: a flood of them does not keep others waiting.
ACCEPTS_AT_ONCE = 16


class _FewAtOnce:
    """Takes from a port of Twisted's its rule of accepting 20 more each turn while there are any."""

    @property
    def numberAccepts(self) -> int:
        """How many are accepted in one turn."""
        return ACCEPTS_AT_ONCE

    @numberAccepts.setter
    def numberAccepts(self, _: int) -> None:
        pass


class _Port(_FewAtOnce, Port):
    pass


class _UnixPort(_FewAtOnce, unix.Port):
    pass


#: Seconds that a daemon has to accept a connection to its Unix socket; one that does not is there all the same.
PROBE_SECONDS = 1.0


def _show(endpoint: Endpoint) -> str:
    address, port = endpoint
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def lacks_family(address: IPv4Address | IPv6Address) -> bool:
    """Say whether this host has no address of this one's family at all, as a host without IPv6 has none.

    An address that is only missing, or misspelt, is no such case: its family works on the loopback interface.
    """
    family, loopback = (socket.AF_INET6, "::1") if address.version == 6 else (socket.AF_INET, "127.0.0.1")
    return _cannot_bind(family, str(address)) and _cannot_bind(family, loopback)


def _cannot_bind(family: socket.AddressFamily, host: str) -> bool:
    """Say whether the kernel knows neither family nor address; other obstacles are told when the socket is opened."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((host, 0))
    except OSError as error:
        return error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
    return False


def with_family(listen: Sequence[Endpoint], key: str) -> tuple[list[Endpoint], list[str]]:
    """Give the addresses whose family this host has, and a line for each one that is left out.

    StartError when there would be none left.
    """
    lacking = [endpoint for endpoint in listen if lacks_family(endpoint[0])]
    texts = [f"{key}: {_show(one)} is left out: this host has no IPv{one[0].version}" for one in lacking]
    if lacking and len(lacking) == len(listen):
        raise StartError(f"{'; '.join(texts)}; name an address that this host has")
    return [endpoint for endpoint in listen if endpoint not in lacking], texts


def usable_loopback(endpoint: Endpoint) -> Endpoint:
    """Give the same port on the other family's loopback address where this host lacks the family of a loopback one."""
    address, port = endpoint
    if not address.is_loopback or not lacks_family(address):
        return endpoint
    other: IPv4Address | IPv6Address = IPv4Address("127.0.0.1") if address.version == 6 else IPv6Address("::1")
    return endpoint if lacks_family(other) else (other, port)


class Inherited:
    """The sockets that a supervisor handed over, by address and kind."""

    def __init__(self, sockets: Iterable[socket.socket]) -> None:
        """StartError when one is of no use here."""
        self._datagrams: dict[Endpoint, list[socket.socket]] = {}
        self._streams: dict[Endpoint, list[socket.socket]] = {}
        for one in sockets:
            if one.family not in (socket.AF_INET, socket.AF_INET6):
                raise StartError("the supervisor handed over a socket that is neither IPv4 nor IPv6; see blockd.socket")
            if one.type == socket.SOCK_STREAM and not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise StartError("the supervisor handed over a TCP socket that does not listen; see blockd.socket")
            host, port = one.getsockname()[:2]
            endpoint = (ip_address(host.partition("%")[0]), port)
            if one.type == socket.SOCK_DGRAM:
                self._datagrams.setdefault(endpoint, []).append(one)
            else:
                self._streams.setdefault(endpoint, []).append(one)

    def check(self, listen: Iterable[Endpoint]) -> None:
        """StartError when a socket is of an address that the config does not name: it would be open and silent."""
        unknown = {*self._datagrams, *self._streams} - set(listen)
        for endpoint in sorted(unknown, key=str):
            text = f"the supervisor opened {_show(endpoint)}, which is in neither server.listen nor block_page.listen"
            raise StartError(f"{text}; make blockd.socket and the config the same")

    def datagrams(self, endpoint: Endpoint) -> list[int]:
        """Give the descriptors of an address's UDP sockets."""
        return [one.fileno() for one in self._datagrams.get(endpoint, ())]

    def streams(self, endpoint: Endpoint) -> list[socket.socket]:
        """Give an address's TCP sockets: the kernel spreads connections over them, so each must be accepted from."""
        return self._streams.get(endpoint, [])


def listen_tcp(
    reactor: Any, endpoint: Endpoint, factory: Any, key: str, inherited: Sequence[socket.socket] = ()
) -> list[Any]:
    """Listen for TCP on an address. StartError names the key of the config, and what to do."""
    for one in inherited:
        one.setblocking(False)
    if inherited:
        return [_adopt(reactor, one, factory) for one in inherited]
    host, port = str(endpoint[0]), endpoint[1]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # Or [::]:53 would take 0.0.0.0:53 too, and stand in its own way.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
            listener.setblocking(False)
            return [_adopt(reactor, listener, factory)]
    except OSError as error:
        text = f"{_show(endpoint)} (TCP): {error.strerror}"
        raise StartError(bind_advice(OSError(error.errno, text), key)) from None


def _adopt(reactor: Any, listener: socket.socket, factory: Any) -> Any:
    port = _Port._fromListeningDescriptor(reactor, listener.fileno(), listener.family, factory)
    port.startListening()
    return port


def listen_unix(reactor: Any, path: Path, factory: Any, mode: int) -> Any:
    """Listen on a Unix socket that users of this machine may open. CannotListenError when it cannot be made."""
    port = _UnixPort(os.fsencode(path), factory, BACKLOG, mode, reactor)
    port.startListening()
    return port


class UnixPath:
    """The path of a Unix socket of ours: only what a daemon that was killed left there is removed, and nothing else."""

    def __init__(self, path: Path, key: str) -> None:
        """Make room for the socket. StartError names the key of the config, and says what is in the way."""
        self._path = path
        self._identity: tuple[int, int] | None = None
        try:
            mode = path.lstat().st_mode
            if not stat.S_ISSOCK(mode):
                what = "a symbolic link" if stat.S_ISLNK(mode) else "not a socket"
                raise StartError(f"{key}: {path}: is there and is {what}; remove it, or name another path")
            if _is_listened_to(path):
                raise StartError(f"{key}: {path}: another daemon listens there; stop it, or name another path")
            path.unlink()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StartError(f"{key}: {path}: {error.strerror or error}; name another path") from None

    def bound(self) -> None:
        """Note that the socket is there: what is there when it is removed has to be the same."""
        found = os.lstat(self._path)
        self._identity = (found.st_dev, found.st_ino)

    def remove(self) -> None:
        """Remove the socket, unless another daemon has put its own there."""
        try:
            found = os.lstat(self._path)
            if (found.st_dev, found.st_ino) == self._identity:
                self._path.unlink()
        except OSError:
            # It is gone, or its directory is: a start removes what is left.
            return


def _is_listened_to(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
        except (TimeoutError, BlockingIOError):
            # Its queue of connections is full.
            return True
    return True


def bind_advice(error: OSError, key: str) -> str:
    """Say what to do about an address that cannot be had."""
    advice = {
        errno.EADDRINUSE: "the port is in use: stop what listens there (ss -lnptu shows it), or choose another",
        errno.EACCES: "a port below 1024 needs root, CAP_NET_BIND_SERVICE, or blockd.socket",
        errno.EADDRNOTAVAIL: "this machine has no such address",
    }.get(error.errno or 0)
    return f"{key}: {error.strerror or error}" + (f"; {advice}" if advice else "")

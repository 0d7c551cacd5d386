"""The daemon's side of the firewall: says what is wanted and learned to whoever holds the right to change rules.

An answer that leads to an app waits until every firewall that is connected has said that it knows; the hot path lets it
go after `egress.wait_ms` whatever happens here. The socket is a file of this machine; who may open it may know of every
device.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from blockd.egress.learned import Book
from blockd.egress.ruleset import SEEN
from blockd.egress.totals import Totals
from blockd.egress.wanted import Wanted, exempt_json, read_status
from blockd.observe.rendering import paced
from blockd.observe.repeated import RepeatedFailure
from blockd.settings.schema import Egress as Settings
from blockd.settings.values import Address

log = logging.getLogger("blockd")

#: Octets of a line of a firewall's, and lines that may wait for a slow one.
LINE, BACKLOG = 4 << 20, 256 << 20
#: Firewalls at once, and handshakes; handshakes of one address (/64 of IPv6), and seconds for one.
MOST, SHARE, HANDSHAKE = 16, 4, 5.0
#: Seconds that a firewall may be at one message before the next is sent all the same, and until one says anything.
PATIENCE, SILENCE = 1.0, 15.0
#: Names that are looked up at once, and seconds until the next.
LOOK_UPS, PAUSE = 20, 0.1


def share_of(host: str) -> str:
    """Give the network that shares one allowance: an IPv6 host picks addresses freely inside its /64."""
    address = ip_address(host.partition("%")[0])
    return host if address.version == 4 else str(ip_network((address, 64), strict=False))


def tls(is_server: bool, certificate: Path, key: Path, authority: Path) -> ssl.SSLContext:
    """Make the context of either side: TLS 1.3, nobody without a certificate of the authority. OSError for files."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificate, key)
    context.load_verify_locations(authority)
    return context


def keep_alive(writer: asyncio.StreamWriter) -> None:
    """Have the kernel find out within seconds that the other machine is gone."""
    one = writer.get_extra_info("socket")
    if one is None or one.family == socket.AF_UNIX:
        return
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 2)):
        one.setsockopt(socket.IPPROTO_TCP, option, value)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 15_000)


class _Peer:
    """One firewall that is connected."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        #: The last that it has done, of what it was told.
        self.done = 0
        #: The last that it was told.
        self.told = 0
        #: Whether it has done anything yet: before it does what is wanted, no answer waits for it.
        self.is_ready = False
        self.status: dict[str, Any] = {}
        #: The last that it has done or failed to do; -1 before the first.
        self.answered = -1
        #: The same, when it sent its status.
        self.answered_by_status = -1
        self.since = time.monotonic()


class Firewall:
    """What the daemon tells firewalls. All calls on the reactor's thread."""

    def __init__(
        self,
        let_go: Callable[[list[int]], None],
        look_up: Callable[[str, int], None],
        asked_within: Callable[[str, int], bool],
        beside: Callable[[Collection[str]], dict[str, set[str]]],
    ) -> None:
        """`let_go` sends answers that are held, by serial; `look_up` asks an upstream for a name and type.

        `asked_within` says whether an address asked us anything within so many seconds, `beside` which other addresses
        are of the same devices.
        """
        self.book = Book()
        self.peers: set[_Peer] = set()
        self.is_off = False
        self._let_go, self._look_up, self._asked_within, self._beside = let_go, look_up, asked_within, beside
        #: Sources that are refused something by a firewall and do not ask us: packets. They have another resolver.
        self.silent: dict[str, int] = {}
        self._wanted: Wanted | None = None
        self._serial = 0
        #: What firewalls are to be told next: app and address, and for how long.
        self._add: dict[tuple[str, Address], int] = {}
        self._drop: dict[tuple[str, Address], None] = {}
        #: Answers that wait for that.
        self._batch: list[int] = []
        self._is_flushing = False
        #: What firewalls are at, and until when nothing more is sent for it.
        self._flying, self._flying_until = 0, 0.0
        #: What was told and not done yet -> answers that wait for it.
        self._waiting: dict[int, list[int]] = {}
        self._server: asyncio.AbstractServer | None = None
        self._far: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        #: Handshakes under way, the oldest first, and from where each is.
        self._shaking: dict[asyncio.Task[None], str] = {}
        #: What is tried again and again: to accept, to keep what is known, to be connected.
        self._accept_failure, self._keep_failure, self._way = RepeatedFailure(), RepeatedFailure(), RepeatedFailure()
        #: Who was not let in, by reason: too many at once, no certificate of ours, too many firewalls.
        self.turned_away: Counter[str] = Counter()
        #: What all firewalls counted since the daemon started, and what was counted before in their tables.
        self.totals = Totals()
        #: Who waits until every firewall has done what it was told, with the serial of it.
        self._settling: list[tuple[int, asyncio.Future[bool]]] = []
        self._names: list[str] = []
        self._is_first = True

    async def listen(self, path: Path) -> None:
        """Wait for firewalls. OSError when the socket cannot be made."""
        before = os.umask(0o117)
        try:
            self._server = await asyncio.start_unix_server(self._serve, path=str(path), limit=LINE)
        finally:
            os.umask(before)

    async def listen_far(self, host: str, port: int, context: ssl.SSLContext) -> None:
        """Wait for firewalls of other machines, each with a certificate. OSError when the port cannot be had."""
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        listening.setblocking(False)
        self._far, self._accepting = listening, self._loop().create_task(self._accept(listening, context))

    async def _accept(self, listening: socket.socket, context: ssl.SSLContext) -> None:
        # Not a server of asyncio's: that begins as many handshakes as strangers please.
        while True:
            try:
                one, peer = await self._loop().sock_accept(listening)
            except OSError as error:
                # No more descriptors, most likely; whoever came is still there after a moment.
                self._accept_failure.failed(f"egress: no firewall of another machine can connect: {error.strerror}")
                await asyncio.sleep(PAUSE)
                continue
            self._accept_failure.worked("egress: firewalls of other machines can connect again")
            source = share_of(peer[0])
            if list(self._shaking.values()).count(source) >= SHARE:
                self.turned_away["share"] += 1
                one.close()
                continue
            if len(self._shaking) >= MOST:
                # A firewall is done in milliseconds; the one that takes longest is most likely none.
                oldest = next(iter(self._shaking))
                del self._shaking[oldest]
                oldest.cancel()
                self.turned_away["busy"] += 1
            task = self._loop().create_task(self._shake_hands(one, context))
            self._shaking[task] = source
            task.add_done_callback(lambda done: self._shaking.pop(done, None))

    async def _shake_hands(self, one: socket.socket, context: ssl.SSLContext) -> None:
        reader = asyncio.StreamReader(limit=LINE)
        protocol = asyncio.StreamReaderProtocol(reader, self._serve)
        try:
            await self._loop().connect_accepted_socket(
                lambda: protocol, one, ssl=context, ssl_handshake_timeout=HANDSHAKE
            )
        except asyncio.CancelledError:
            one.close()
        except Exception:  # noqa: BLE001  whatever it sends, it is not let in
            self.turned_away["certificate"] += 1
            one.close()

    def close(self) -> None:
        """Stop; rules stand as they are."""
        if self._accepting is not None:
            self._accepting.cancel()
        for server in (self._server, self._far):
            if server is not None:
                server.close()
        for peer in self.peers:
            peer.writer.close()

    # What is known over restarts

    def keep(self, file: Path, kept: dict[str, Any]) -> None:
        """Write down what `self.book.keep` gave. It may wait for a disk: on any thread."""
        new = file.with_suffix(".new")
        try:
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as written:
                json.dump({**kept, "at": time.time()}, written)
            new.replace(file)
        except OSError as error:
            self._keep_failure.failed(f"egress: {file} cannot be written: {error.strerror}")
        else:
            self._keep_failure.worked(f"egress: {file} is written again")

    def recall(self, file: Path) -> None:
        """Know again what was written there: firewalls have it still, and what is shared is not seen at once."""
        if not file.exists():
            return
        try:
            kept = json.loads(file.read_text())
            at = kept.get("at") if isinstance(kept, dict) else None
            if not isinstance(at, int | float):
                raise ValueError("expected when it was written")
            skipped = self.book.recall(kept, max(0.0, time.time() - at), time.monotonic())
        except (OSError, ValueError, RecursionError) as error:
            log.error("egress: %s cannot be read, and is left out: %s", file, error)
            return
        if skipped:
            log.error("egress: %s: %d rows are skipped, the others count", file, skipped)

    # What is wanted

    def want(self, wanted: Wanted, settings: Settings, protected: frozenset[Address]) -> None:
        """Have all of it in force, as the config says; an address that is `protected` is never learned."""
        is_told_all = self._wanted is not None and self.book.shared_is == settings.shared
        self._wanted = wanted
        self.book.shared_is, self.book.protected, self.book.never = settings.shared, protected, tuple(settings.never)
        self.book.follow(wanted.apps)
        self._send_all(is_told_all)

    def move(self, places: dict[Address, str | None]) -> None:
        """Say that sources are in other groups; an empty one leaves networks to decide."""
        if self._wanted is None or not places:
            return
        for address, group in places.items():
            if group == "":
                self._wanted.places.pop(address, None)
            else:
                self._wanted.places[address] = group
        self._send({"places": [[str(address), group] for address, group in places.items()]})

    def exempt(self, addresses: dict[str, dict[Address, float]], macs: dict[str, dict[str, float]]) -> None:
        """Say who is exempt now."""
        if self._wanted is None or (addresses, macs) == (self._wanted.exempt, self._wanted.exempt_macs):
            return
        self._wanted.exempt, self._wanted.exempt_macs = addresses, macs
        self._send(exempt_json(addresses, macs))

    def wanted(self) -> Wanted | None:
        """Give what is wanted now."""
        return self._wanted

    def turn(self, is_off: bool) -> None:
        """Have firewalls take all of ours away, or put it back."""
        self.is_off = is_off
        if is_off:
            self._send({"off": True})
        else:
            self._send_all()

    async def settled(self, seconds: float) -> bool:
        """Wait until every firewall has done what it was told, and has said how it stands since; False after a time."""
        future: asyncio.Future[bool] = self._loop().create_future()
        self._settling.append((self._serial, future))
        self._settle()
        try:
            return await asyncio.wait_for(future, seconds)
        except TimeoutError:
            return False

    def _settle(self) -> None:
        """Answer those whose wait is over, and forget those who gave up."""
        for told, future in self._settling:
            if not future.done() and all(one.answered_by_status >= told for one in self.peers):
                future.set_result(True)
        self._settling = [one for one in self._settling if not one[1].done()]

    def _send_all(self, is_learned: bool = False) -> None:
        if self._wanted is None or self.is_off:
            return
        self._send(self._all(self._wanted, is_learned))

    def _all(self, wanted: Wanted, is_learned: bool = False) -> dict[str, Any]:
        """Write what is wanted, with what was learned unless who hears it has learned it, too."""
        enforced = [] if is_learned else self.book.enforced(time.monotonic())
        learned = [[app, str(address), left] for app, address, left in enforced]
        gone = [[app, str(address)] for app, address in self.book.left_alone()]
        return {"wanted": wanted.as_json(), "learn": learned, "forget": gone}

    # What is learned

    def learned(self, serial: int, name: str, apps: Iterable[str], addresses: list[Address], seconds: int) -> None:
        """Take an answer's addresses in; the answer is let go when every firewall knows them, if it is held."""
        news = self.book.hear(name, apps, addresses, seconds, time.monotonic())
        if self.book.shared_is == "log":
            for address in news.shared:
                names = ", ".join(self.book.shared[address])
                log.info("egress: %s is an app's, and %s leads to it as well: it is let through", address, names)
        # The last word about an address counts.
        for app, address, left in news.add:
            self._add[app, address] = left
            self._drop.pop((app, address), None)
        for app, address in news.drop:
            self._add.pop((app, address), None)
            self._drop[app, address] = None
        if serial and not news.add and self._batch:
            # What it would tell is told next, most likely.
            self._batch.append(serial)
        elif serial and not news.add and self._waiting:
            # What it would tell is on its way, most likely.
            next(reversed(self._waiting.values())).append(serial)
        elif serial and not news.add:
            # Every firewall knows already, or is not to know.
            self._let_go([serial])
        elif serial:
            self._batch.append(serial)
        if (news.add or news.drop) and not self._is_flushing:
            # What comes in one turn is one transaction.
            self._is_flushing = True
            self._loop().call_soon(self._flush)

    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    def _flush(self) -> None:
        """Tell firewalls what is new, unless they are at what came before: then it goes when they are done."""
        self._is_flushing = False
        if not self.peers or self.is_off:
            self._add, self._drop = {}, {}
            self._release(self._batch)
            return
        if not any(peer.is_ready for peer in self.peers):
            self._release(self._batch)
        now = time.monotonic()
        if self._flying and now < self._flying_until:
            return
        if self._flying:
            # Who waited for that was let go long ago.
            self._waiting.clear()
        if not self._add and not self._drop:
            return
        message = {
            "learn": [[app, str(address), left] for (app, address), left in self._add.items()],
            "forget": [[app, str(address)] for app, address in self._drop],
        }
        self._add, self._drop = {}, {}
        self._flying, self._flying_until = self._send(message), now + PATIENCE
        # Whether it is confirmed or not: what is new by then must not wait for the next answer.
        self._loop().call_later(PATIENCE + 0.01, self._flush)
        batch, self._batch = self._batch, []
        if batch:
            self._waiting[self._flying] = batch

    def _release(self, batch: list[int]) -> None:
        if batch:
            serials = list(batch)
            batch.clear()
            self._let_go(serials)

    def _done(self) -> None:
        least = min((peer.done for peer in self.peers if peer.is_ready), default=self._serial)
        for told in [told for told in self._waiting if told <= least]:
            self._release(self._waiting.pop(told))
        if self._flying and self._flying <= least:
            self._flying = 0
            self._flush()

    def look_up(self, names: list[str]) -> None:
        """Have names looked up one after the other, so that it is known where they lead though nobody asks."""
        is_at_it, self._names = bool(self._names), list(names)
        if not is_at_it:
            self._look_up_some()

    def _look_up_some(self) -> None:
        now, self._names = self._names[:LOOK_UPS], self._names[LOOK_UPS:]
        for name in now:
            for qtype in (1, 28):
                with contextlib.suppress(ValueError):
                    self._look_up(name, qtype)
        if self._names:
            asyncio.get_running_loop().call_later(PAUSE, self._look_up_some)

    # Firewalls

    def _send(self, message: dict[str, Any]) -> int:
        self._serial += 1
        line = json.dumps({**message, "serial": self._serial}).encode() + b"\n"
        for peer in list(self.peers):
            transport = peer.writer.transport
            if transport.get_write_buffer_size() > BACKLOG:
                text = "egress: a firewall does not read what it is told: it is told all anew when it comes back"
                self._way.failed(text)
                transport.abort()
                continue
            peer.told = self._serial
            peer.writer.write(line)
        return self._serial

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self.peers) >= MOST:
            self.turned_away["firewalls"] += 1
            writer.close()
            return
        peer = _Peer(writer)
        peer.done = peer.told = self._serial
        self.peers.add(peer)
        keep_alive(writer)
        self._loop().call_later(SILENCE, self._close_if_silent, peer)
        if self._is_first:
            log.info("egress: a firewall is connected")
            self._is_first = False
        self._way.worked("egress: a firewall is connected again")
        try:
            if self.is_off:
                writer.write(json.dumps({"off": True, "serial": self._serial}).encode() + b"\n")
            elif self._wanted is not None:
                line = {**self._all(self._wanted), "serial": self._serial}
                writer.write(json.dumps(line).encode() + b"\n")
            while line_read := await reader.readline():
                said = json.loads(line_read)
                if "done" in said:
                    peer.done = peer.answered = int(said["done"])
                    peer.is_ready = True
                    self._done()
                if "failed" in said:
                    # It tries again by itself, and no answer waits for it meanwhile.
                    peer.answered, peer.is_ready = int(said["failed"]), False
                    self._done()
                if "status" in said:
                    peer.status = read_status(said["status"])
                    peer.answered_by_status = peer.answered
                    self.totals.read(peer.status["table"] or f"connection {id(peer)}", peer.status)
                    self._look_for_silent()
                    self._settle()
        except (OSError, RecursionError) as error:
            self._way.failed(f"egress: a firewall cannot be heard: {error}")
        except Exception as error:  # noqa: BLE001  whatever it says, it costs this connection alone
            text = f"a firewall sent a message that is not understood: {type(error).__name__}: {error}"
            self._way.failed(f"egress: {text}")
        finally:
            self.peers.discard(peer)
            writer.close()
            self._done()
            self._settle()
            text = "egress: a firewall is gone; what it enforced stands as it is"
            self._way.failed(text, logging.WARNING)

    def _look_for_silent(self) -> None:
        wanting: dict[str, int] = {}
        for peer in self.peers:
            for source, packets in dict(peer.status.get("seen") or {}).items():
                wanting[source] = wanting.get(source, 0) + int(packets)
        silent = {source: packets for source, packets in wanting.items() if not self._asked_within(source, SEEN)}
        # A device may ask by one of its addresses, and go elsewhere by another.
        for source, others in self._beside(silent.keys()).items():
            if any(self._asked_within(other, SEEN) for other in others):
                del silent[source]
        for source in silent.keys() - self.silent.keys():
            log.warning(
                "egress: %s wants what is an app's, and asked us nothing of late: it has another resolver",
                source,
            )
        self.silent = silent

    def lists(self) -> Callable[[], dict[str, list[str]]]:
        """Give what is refused, by app, for firewalls that fetch it: networks, and addresses that are learned now.

        What is given is a call that writes them, on any thread: there may be 50,000 addresses an app.
        """
        if self._wanted is None or self.is_off:
            return dict
        wanted, now, book = self._wanted, time.monotonic(), self.book
        blocked = sorted({app for one in wanted.groups.values() for app in one.block})
        known = {app: book.apps[app].items() if app in book.apps else [] for app in blocked}
        spared: Collection[Address] = () if book.shared_is == "block" else book.shared

        def write() -> dict[str, list[str]]:
            return {
                app: [str(network) for network in wanted.apps[app]]
                + [str(address) for address, until in paced(known[app]) if until > now and address not in spared]
                for app in blocked
            }

        return write

    def _close_if_silent(self, peer: _Peer) -> None:
        # A firewall says how it stands at once: whoever does not is none, and takes its place.
        if not peer.status:
            peer.writer.close()

    def status(self) -> dict[str, Any]:
        """Say how it stands, for people and dashboards."""
        return {
            "is_off": self.is_off,
            "generation": None if self._wanted is None else self._wanted.generation,
            "firewalls": [
                {**peer.status, "is_ready": peer.is_ready, "behind": peer.told - peer.done} for peer in self.peers
            ],
            "silent": self.silent,
            "refused": dict(self.book.refused),
            "turned_away": dict(self.turned_away),
            "learned": {app: len(known) for app, known in self.book.apps.items()},
            "shared": {
                str(address): {
                    "names": names,
                    "apps": [app for app, known in self.book.apps.items() if address in known],
                }
                for address, names in list(self.book.shared.items())[:1_000]
            },
        }

"""nftables of this machine's kernel, by the program `nft` (GPL-2.0, run and not linked), a transaction a call.

Text is what an engineer can read, keep and put in force by himself; `blockd egress plan` prints the same. What others
change of our table is heard of the kernel itself, as it happens (NFNLGRP_NFTABLES): to list a set of 100,000 sources
takes `nft` seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from blockd.egress.netlink import (
    ACKNOWLEDGE,
    ERROR,
    NETLINK_NETFILTER,
    attribute,
    attributes,
    messages,
    nest,
    request,
)
from blockd.egress.ruleset import MARK, TABLE, Objects, learned
from blockd.settings.values import Address

#: Seconds that a transaction may take.
PATIENCE = 20.0
#: Octets of others' changes that may wait to be read: those of some 100,000 elements.
WAITING = 16 << 20
#: linux/netlink.h, linux/filter.h, and messages of linux/netfilter/nf_tables.h.
SOL_NETLINK, JOIN, LEAVE, NFNLGRP_NFTABLES = 270, 1, 2, 7
SO_ATTACH_FILTER, SO_RCVBUFFORCE, BPF_LOAD_WORD, BPF_IS, BPF_RETURN = 26, 33, 0x20, 0x15, 0x06
SUBSYSTEM = 10 << 8
GETGEN, NEWGEN, DELTABLE, NEWSETELEM, DELSETELEM = (SUBSYSTEM | kind for kind in (16, 15, 2, 12, 14))
#: Around the steps of a transaction; of a step: table, set, elements, of each key and time.
BATCH_BEGIN, BATCH_END, CREATE = 16, 17, 0x400
ELEMENTS_TABLE, ELEMENTS_SET, ELEMENTS_LIST, LIST_ELEMENT = 1, 2, 3, 1
ELEMENT_KEY, DATA_VALUE, ELEMENT_TIMEOUT = 1, 1, 4
#: Elements of one step, and of one transaction: a message is 64 KB at most, and what is sent at once 200.
AT_ONCE, MOST_AT_ONCE = 1_000, 3_000
#: The table as the kernel has it.
NAME = TABLE.split()[1].encode() + b"\0"
#: The family `inet`; the name of the program in a message about a generation.
NFPROTO_INET, NFTA_GEN_ID, NFTA_GEN_PROC_NAME = 1, 1, 3


class NftError(Exception):
    """The kernel or `nft` does not take it; nothing was changed."""


class SetFullError(NftError):
    """A set of learned addresses has no room for more."""


@dataclass(frozen=True)
class Counted:
    """What the rules counted."""

    #: Packets and octets by a counter's name.
    counters: dict[str, tuple[int, int]]
    #: Sources that wanted what is an app's of late: packets.
    seen: dict[str, int]


class Nftables:
    """The table `inet blockd`, and nobody else's. Every call may block for a moment; one thread at a time."""

    def __init__(self) -> None:
        """Find the program, and hear of changes from now on. NftError when there is none, or no right to."""
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        program = shutil.which("nft", path=path)
        if program is None:
            raise NftError("there is no nft: install the package nftables")
        self._program = program
        self._heard, self._told = _listen(), _connect()
        self._own = int(self._told.getsockname()[0])
        _pass_over(self._heard, self._own)

    def fileno(self) -> int:
        """Give the descriptor that can be read when somebody changed rules."""
        return self._heard.fileno()

    def apply(self, text: str, is_all: bool = False) -> bool:
        """Put a transaction in force, whole or not at all. NftError says why not.

        Of one that makes all anew each element would be told to us as well: nobody listens meanwhile, which is twice
        as fast. False says that somebody else changed something just then.
        """
        if not text.strip():
            return True
        if not is_all:
            self._run(["-f", "-"], text)
            return True
        before = generation()
        self._member(LEAVE)
        try:
            self._run(["-f", "-"], text)
        finally:
            self._member(JOIN)
        return generation() == before + 1

    def learn(self, addresses: Iterable[tuple[str, Address, int]], is_renewed: bool = False) -> None:
        """Add app, address and seconds to the sets of learned ones. NftError says why not.

        By netlink and without a process, for clients wait for it; so many as fit are one transaction. With `is_renewed`
        what is there is put there anew, in one step: a kernel before 6.12 keeps the time of what is added again.
        """
        by_set: dict[str, list[tuple[bytes, int]]] = {}
        for app, address, seconds in addresses:
            by_set.setdefault(learned(app, address.version), []).append((address.packed, seconds))
        steps = []
        for name, found in by_set.items():
            for at in range(0, len(found), AT_ONCE):
                some = found[at : at + AT_ONCE]
                plain = [(address, 0) for address, _ in some]
                if is_renewed:
                    steps += [_step(NEWSETELEM, name, plain), _step(DELSETELEM, name, plain)]
                steps.append(_step(NEWSETELEM, name, some))
                if len(steps) * AT_ONCE >= MOST_AT_ONCE:
                    self._transact(steps)
                    steps = []
        self._transact(steps)

    def _transact(self, steps: list[bytes]) -> None:
        if not steps:
            return
        begin, end = (request(kind, resource=SUBSYSTEM >> 8) for kind in (BATCH_BEGIN, BATCH_END))
        try:
            self._told.send(begin + b"".join(steps) + end)
            # The kernel answers each before `send` is over.
            answers = [
                -int.from_bytes(message[16:20], sys.byteorder, signed=True)
                for kind, message in messages(_all(self._told))
                if kind == ERROR
            ]
        except OSError as error:
            raise NftError(f"the kernel takes no addresses: {error.strerror}") from None
        number = max(answers, default=errno.EIO)
        if number in (errno.ENFILE, errno.ENOSPC):
            raise SetFullError(f"a set of learned addresses is full: {os.strerror(number)}")
        if number or len(answers) < len(steps):
            raise NftError(f"the kernel takes no addresses: {os.strerror(number or errno.EIO)}")

    def _member(self, option: int) -> None:
        self._heard.setsockopt(SOL_NETLINK, option, NFNLGRP_NFTABLES)

    def changes(self) -> str | None:
        """Say what others changed of ours since this was asked last; None when they did not."""
        what, by = None, ""
        while True:
            try:
                data = self._heard.recv(1 << 20)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise NftError(f"changes of the kernel's rules cannot be heard: {error.strerror}") from None
                what = what or "more was changed than can be followed"
                continue
            for kind, message in messages(data):
                found = attributes(message)
                if kind == NEWGEN:
                    by = _string(found.get(NFTA_GEN_PROC_NAME)) or by
                # In all others the first attribute is the table's name.
                elif message[16] == NFPROTO_INET and _string(found.get(1)) == TABLE.split()[1]:
                    what = _what(kind, found) if what is None or kind == DELTABLE else what
        return what if what is None else f"{what} by {by or 'somebody else'}"

    def objects(self, is_ours: bool = False) -> Objects | None:
        """Name what the table holds; None when there is none. NftError when it is somebody else's.

        `is_ours` says that it is known to be ours, whatever became of the mark in it.
        """
        there, names = False, dict[str, set[str]](chain=set(), set=set(), map=set(), counter=set())
        for kind, item in self._listed():
            there |= kind == "table"
            if kind in names:
                names[kind].add(str(item["name"]))
        if not there:
            return None
        if not is_ours and MARK not in names["counter"]:
            text = (
                f"there is a table {TABLE} already, which blockd did not make: rename it, or `nft delete table {TABLE}`"
            )
            raise NftError(text)
        return Objects(*(frozenset(names[kind]) for kind in ("chain", "set", "map", "counter")))

    def elements(self, name: str, kind: str = "set") -> dict[str, Any]:
        """Give the elements of a set with the seconds that are left, or of a map with what they lead to."""
        found: dict[str, Any] = {}
        for listed, item in self._list("list", kind, *TABLE.split(), name):
            for one in item.get("elem", []) if listed == kind else []:
                key, value = one if kind == "map" else (one, None)
                if isinstance(key, dict) and "elem" in key:
                    key, value = key["elem"]["val"], key["elem"].get("expires")
                found[_text(key)] = value
        return found

    def counted(self) -> Counted:
        """Give what the rules counted. It may be called on a thread of its own: it changes nothing."""
        counters = {
            item["name"]: (item["packets"], item["bytes"]) for kind, item in self._listed() if kind == "counter"
        }
        seen: dict[str, int] = {}
        for name in ("seen4", "seen6") if counters else ():
            for listed, item in self._list("list", "set", *TABLE.split(), name):
                for one in item.get("elem", []) if listed == "set" else []:
                    if isinstance(one, dict) and "elem" in one:
                        seen[str(one["elem"]["val"])] = int(one["elem"].get("counter", {}).get("packets", 0))
        return Counted(counters, seen)

    def remove(self) -> bool:
        """Take all of ours away; False when there was nothing. NftError when the table is somebody else's."""
        if self.objects() is None:
            return False
        self._run(["-f", "-"], f"delete table {TABLE}\n")
        return True

    def _listed(self) -> list[tuple[str, dict[str, Any]]]:
        """Give all of the table but elements."""
        # Of one table, or of one kind of object, `nft` 1.0.6 reads every element all the same.
        listed = self._list("-t", "list", "ruleset", "inet")
        name = TABLE.split()[1]
        return [(kind, item) for kind, item in listed if name == item.get("name" if kind == "table" else "table")]

    def _list(self, *words: str) -> list[tuple[str, dict[str, Any]]]:
        listed = json.loads(self._run(["-j", *words]))
        return [pair for item in listed.get("nftables", []) for pair in item.items()]

    def _run(self, words: list[str], text: str | None = None) -> str:
        try:
            with subprocess.Popen(
                [self._program, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process:
                try:
                    if text is not None:
                        # Before it has anything to do.
                        _pass_over(self._heard, self._own, process.pid)
                    said, complaint = process.communicate(text or "", PATIENCE)
                except BaseException:
                    process.kill()
                    raise
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NftError(f"nft: {error}") from None
        if process.returncode:
            complaint = " ".join(line for line in complaint.splitlines()[:3] if line.strip() != "")[:500]
            hint = ": the right CAP_NET_ADMIN is needed" if "Operation not permitted" in complaint else ""
            raise NftError(f"nft: {complaint}{hint}")
        return said


def _listen() -> socket.socket:
    heard = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        with contextlib.suppress(OSError):
            # Without the right over the machine's own network the usual room has to do.
            heard.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, WAITING)
        heard.bind((0, 0))
        heard.setblocking(False)
        heard.setsockopt(SOL_NETLINK, JOIN, NFNLGRP_NFTABLES)
    except OSError as error:
        heard.close()
        hint = ": the right CAP_NET_ADMIN is needed" if isinstance(error, PermissionError) else ""
        raise NftError(f"changes of the kernel's rules cannot be heard: {error.strerror}{hint}") from None
    return heard


def _connect() -> socket.socket:
    told = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    told.bind((0, 0))
    return told


def _all(told: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            found += told.recv(1 << 20, socket.MSG_DONTWAIT)
    return found


def _step(kind: int, name: str, elements: list[tuple[bytes, int]]) -> bytes:
    """Write a step of a transaction: elements of a set, each with the seconds that it stands, or with 0."""
    written = b""
    for key, seconds in elements:
        element = nest(ELEMENT_KEY, attribute(DATA_VALUE, key))
        if seconds:
            element += attribute(ELEMENT_TIMEOUT, struct.pack("!Q", seconds * 1000))
        written += nest(LIST_ELEMENT, element)
    place = attribute(ELEMENTS_TABLE, NAME) + attribute(ELEMENTS_SET, name.encode() + b"\0")
    return request(kind, ACKNOWLEDGE | CREATE, NFPROTO_INET, place + nest(ELEMENTS_LIST, written))


def _pass_over(heard: socket.socket, *own: int) -> None:
    """Hear nothing of what these do: what comes is others'.

    The kernel names a netlink socket, most often by its process; a message has that name behind its twelfth octet.
    netlink(7).
    """
    steps = [(BPF_LOAD_WORD, 0, 0, 12)]
    for at, one in enumerate(own):
        # To the end, where it is passed over.
        steps.append((BPF_IS, len(own) - at, 0, int.from_bytes(struct.pack("=I", one), "big")))
    steps += [(BPF_RETURN, 0, 0, 0xFFFF_FFFF), (BPF_RETURN, 0, 0, 0)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    # struct sock_fprog: its length, and where it is.
    heard.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(steps), ctypes.addressof(program)))


def generation() -> int:
    """Ask the kernel how often anybody changed its rules. NftError when it does not say."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
            netlink.settimeout(1.0)
            netlink.bind((0, 0))
            netlink.send(request(GETGEN))
            answer = netlink.recv(4096)
    except OSError as error:
        raise NftError(f"the kernel has no nftables: {error}") from None
    for _, message in messages(answer):
        value = attributes(message).get(NFTA_GEN_ID)
        if value is not None and len(value) == 4:
            return int(struct.unpack("!I", value)[0])
    raise NftError("the kernel does not say which generation of rules it has")


def _string(value: bytes | None) -> str:
    return (value or b"").partition(b"\0")[0].decode(errors="replace")


def _what(kind: int, found: dict[int, bytes]) -> str:
    if kind == DELTABLE:
        return "the table was removed"
    if kind in (NEWSETELEM, DELSETELEM):
        return f"{_string(found.get(2))} was changed"
    return "rules were changed"


def _text(key: Any) -> str:
    if isinstance(key, dict) and "prefix" in key:
        return f"{key['prefix']['addr']}/{key['prefix']['len']}"
    if isinstance(key, dict) and "range" in key:
        return "-".join(key["range"])
    return str(key)

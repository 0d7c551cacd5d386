"""nftables of this machine's kernel, by the program `nft` (GPL-2.0, run and not linked), a transaction a call.

Text is what an engineer can read, keep and put in force by himself; `blockd egress plan` prints the same. Whether
anybody changed anything since is asked of the kernel itself (NFT_MSG_GETGEN), which costs nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
from typing import Any

from blockd.egress.ruleset import MARK, TABLE, Objects

#: Seconds that a transaction may take.
PATIENCE = 20.0
#: Netlink: the protocol of netfilter, the message and the attribute of the generation.
NETLINK_NETFILTER, NFT_MSG_GETGEN, NFTA_GEN_ID = 12, (10 << 8) | 16, 1


class NftError(Exception):
    """The kernel or `nft` does not take it; nothing was changed."""


class Nftables:
    """The table `inet blockd`, and nobody else's. Every call may block for a moment."""

    def __init__(self) -> None:
        """Find the program. NftError when it is not there."""
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        program = shutil.which("nft", path=path)
        if program is None:
            raise NftError("there is no nft: install the package nftables")
        self._program = program

    def apply(self, text: str) -> None:
        """Put a transaction in force, whole or not at all. NftError says why not."""
        if text.strip():
            self._run(["-f", "-"], text)

    def chains(self) -> str | None:
        """Give chains and rules as text, without elements and counts; None when there is no table of ours."""
        try:
            return self._run(["-s", "-t", "list", "table", *TABLE.split()])
        except NftError as error:
            if "No such file" in str(error):
                return None
            raise

    def objects(self, is_ours: bool = False) -> Objects | None:
        """Name what the table holds; None when there is none. NftError when it is somebody else's.

        `is_ours` says that it is known to be ours, whatever became of the mark in it.
        """
        try:
            listed = self._list("list", "table", *TABLE.split(), terse=True)
        except NftError as error:
            if "No such file" in str(error):
                return None
            raise
        names: dict[str, set[str]] = {"chain": set(), "set": set(), "map": set(), "counter": set()}
        for kind, item in listed:
            if kind in names:
                names[kind].add(str(item["name"]))
        if not is_ours and MARK not in names["counter"]:
            text = (
                f"there is a table {TABLE} already, which blockd did not make: rename it, or `nft delete table {TABLE}`"
            )
            raise NftError(text)
        return Objects(*(frozenset(names[kind]) for kind in ("chain", "set", "map", "counter")))

    def elements(self, name: str, kind: str = "set") -> dict[str, Any]:
        """Give the elements of a set, or of a map with what they lead to."""
        found: dict[str, Any] = {}
        for listed, item in self._list("list", kind, *TABLE.split(), name):
            for one in item.get("elem", []) if listed == kind else []:
                key, value = one if kind == "map" else (one, None)
                if isinstance(key, dict) and "elem" in key:
                    key, value = key["elem"]["val"], key["elem"].get("expires")
                found[_text(key)] = value
        return found

    def refused(self, version: int) -> dict[str, int]:
        """Give the sources that were refused something of late, and how many packets each."""
        found: dict[str, int] = {}
        for listed, item in self._list("list", "set", *TABLE.split(), f"refused{version}"):
            for one in item.get("elem", []) if listed == "set" else []:
                if isinstance(one, dict) and "elem" in one:
                    found[str(one["elem"]["val"])] = int(one["elem"].get("counter", {}).get("packets", 0))
        return found

    def counters(self) -> dict[str, tuple[int, int]]:
        """Give packets and octets of each counter."""
        listed = self._list("list", "counters", "table", *TABLE.split())
        return {item["name"]: (item["packets"], item["bytes"]) for kind, item in listed if kind == "counter"}

    def remove(self) -> bool:
        """Take all of ours away; False when there was nothing. NftError when the table is somebody else's."""
        if self.objects() is None:
            return False
        self._run(["delete", "table", *TABLE.split()])
        return True

    def _list(self, *words: str, terse: bool = False) -> list[tuple[str, dict[str, Any]]]:
        listed = json.loads(self._run(["-j", *(["-t"] if terse else []), *words]))
        return [pair for item in listed.get("nftables", []) for pair in item.items()]

    def _run(self, words: list[str], text: str | None = None) -> str:
        try:
            done = subprocess.run(
                [self._program, *words], input=text, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NftError(f"nft: {error}") from None
        if done.returncode:
            said = " ".join(line for line in done.stderr.splitlines()[:3] if line.strip() != "")[:500]
            hint = ": the right CAP_NET_ADMIN is needed" if "Operation not permitted" in said else ""
            raise NftError(f"nft: {said}{hint}")
        return done.stdout


def generation() -> int:
    """Ask the kernel how often anybody changed its rules. NftError when it does not say."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
            netlink.settimeout(1.0)
            netlink.bind((0, 0))
            netlink.send(struct.pack("=IHHIIBBH", 20, NFT_MSG_GETGEN, 1, 1, 0, 0, 0, 0))
            answer = netlink.recv(4096)
    except OSError as error:
        raise NftError(f"the kernel has no nftables: {error}") from None
    at = 20
    while at + 8 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind & 0x3FFF == NFTA_GEN_ID:
            return int(struct.unpack_from("!I", answer, at + 4)[0])
        at += max(4, (length + 3) & ~3)
    raise NftError("the kernel does not say which generation of rules it has")


def _text(key: Any) -> str:
    if isinstance(key, dict) and "prefix" in key:
        return f"{key['prefix']['addr']}/{key['prefix']['len']}"
    if isinstance(key, dict) and "range" in key:
        return "-".join(key["range"])
    return str(key)

"""ISC dhcpd's lease file: blocks that are added at each change, the last one for an address counts. dhcpd.leases(5)."""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterable, Iterator

from blockd.devices.leases.lease import ENDLESS, Lease, mac_of_duid, read_lease, read_time

_BEGIN = re.compile(r"(?:lease|iaaddr) ([0-9a-fA-F.:]+) \{")
_TIME = re.compile(r"ends \d (\d{4})/(\d\d)/(\d\d) (\d\d):(\d\d):(\d\d)|ends epoch (\d+)")
_ENDS_NEVER = "ends never"


class Dhcpd:
    """Reads lines as they come; a lease is known when its block is closed."""

    is_whole = False
    before: tuple[str, ...] = ()

    def __init__(self) -> None:
        """Start outside of any block."""
        self._address = ""
        self._fields: dict[str, str] = {}
        self._duid = ""

    def read(self, lines: Iterable[str]) -> Iterator[Lease | None]:
        """Give the lease of each block that ends here, None for one that has none."""
        for line in lines:
            text = line.strip()
            if text.startswith("ia-"):
                # Of addresses that are kept, and not of temporary ones, which are another device's next time.
                self._duid = _unescaped(text) if text.startswith("ia-na") else ""
            elif (found := _BEGIN.match(text)) is not None:
                self._address, self._fields = found[1], {}
            elif text == "}" and self._address:
                yield self._lease()
                self._address = ""
            elif self._address:
                for key in ("ends", "binding state", "hardware ethernet", "client-hostname"):
                    if text.startswith(f"{key} "):
                        self._fields[key] = text.rstrip(";")

    def _lease(self) -> Lease | None:
        ends = self._fields.get("ends", "")
        until = ENDLESS if ends == _ENDS_NEVER else 0.0
        if (found := _TIME.match(ends)) is not None:
            until = read_time(found[7]) if found[7] else _seconds(found)
        if self._fields.get("binding state", "binding state active") != "binding state active":
            until = 0.0
        mac = self._fields.get("hardware ethernet", "").removeprefix("hardware ethernet ") or self._duid
        hostname = self._fields.get("client-hostname", "").removeprefix("client-hostname ").strip('"')
        return read_lease(self._address, mac, hostname, until)


def _seconds(found: re.Match[str]) -> float:
    try:
        return float(calendar.timegm(tuple(map(int, found.groups()[:6]))))
    except (ValueError, OverflowError):
        return 0.0


def _unescaped(text: str) -> str:
    """Give the MAC in an IA's name: four octets of IAID, then the DUID, with octets as `\\ooo` or as they are."""
    quoted = re.search(r'"((?:[^"\\]|\\.)*)"', text)
    if quoted is None:
        return ""
    octets = re.sub(
        rb"\\([0-7]{3}|.)",
        lambda found: bytes([int(found[1], 8) & 255]) if len(found[1]) == 3 else found[1],
        quoted[1].encode("latin-1", errors="replace"),
    )
    return mac_of_duid(octets[4:].hex())

"""What a cell of an inventory says: MACs."""

from __future__ import annotations

import re

_MAC = re.compile(r"[0-9a-f]{2}([:-]?)(?:[0-9a-f]{2}\1){4}[0-9a-f]{2}|(?:[0-9a-f]{4}\.){2}[0-9a-f]{4}")


def read_mac(text: str) -> str:
    """Read a MAC in any usual form; give it as `00:11:22:33:44:55`. ValueError when it is none."""
    text = text.strip().lower()
    if not _MAC.fullmatch(text):
        raise ValueError("expected a MAC, such as 00:11:22:33:44:55")
    digits = re.sub(r"[^0-9a-f]", "", text)
    if digits in ("0" * 12, "f" * 12) or int(digits[:2], 16) & 1:
        raise ValueError("this MAC is no device's: it is all zeros, or a group's")
    return ":".join(digits[at : at + 2] for at in range(0, 12, 2))


def mac_number(mac: str) -> int:
    """Give a MAC as a number, as the hot path knows it."""
    return int(mac.replace(":", ""), 16)


def is_randomised(mac: str) -> bool:
    """Say whether a MAC was made up by its device: the bit for locally administered ones is set (IEEE 802 8.2)."""
    return bool(int(mac[:2], 16) & 2)

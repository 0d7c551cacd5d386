"""What the columns of asset tools mean, and which of those that are not read look as if they should be."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

#: Of a column's name; a longer one is not a name.
MAX_NAME_CHARACTERS = 80
#: Two names with a separator between them are not one name; NUL is in text of another encoding.
_SEPARATORS = frozenset(",;|\t\0")
#: Columns that an error or a note lists.
MAX_LISTED = 20

_ADDRESS = "address(?:es)?|addr|adresse[ns]?|adres|direccion|indirizzo|endereco"
#: Which of a device's cards a MAC belongs to. No word is made of others, so that matching takes one pass.
_CARDS = (
    "wifi|wlan|wireless|airport|ethernet|eth|lan|wired|cable|primary|secondary|tertiary|first|second|third|alt|alternate"
    "|alternative|other|additional|extra|dock|docking|station|usb|thunderbolt|adapter|adaptor|nic|network|interface|card"
    "|port|device|computer|hardware|host|physical|main|internal|external|onboard|builtin|permanent|system|client|asset"
    "|list|all|id|[0-9]"
)
_WHICH = (
    "static|fixed|primary|secondary|first|second|alt|alternate|other|additional|device|host|main|list|all|v[46]|[0-9]"
)
_OF_A_DEVICE = "device|computer|system|hardware|bios|asset|chassis|machine"
#: Column -> the names that tools give it, in small letters without anything between words.
_NAMES = {
    "mac": re.compile(
        f"(?:{_CARDS}|{_ADDRESS})*mac(?:s|(?={_CARDS}|{_ADDRESS})|$)(?:{_CARDS}|{_ADDRESS})*|h(?:ard)?w(?:are)?(?:address|addr)"
    ),
    "address": re.compile(f"(?:{_WHICH})*(?:{_ADDRESS})?ip(?:v[46])?s?(?:{_ADDRESS}|{_WHICH})*|address(?:es)?"),
    "serial": re.compile(f"(?:{_OF_A_DEVICE})*serial(?:numbers?|no|nr|num)?0?|seriennummer|numerodeserie"),
    "hostname": re.compile("(?:device|(?:ps)?computer|machine|asset|host|netbios|(?:device)?friendly)?name0?"),
    "owner": re.compile("owner|user|username|assigneduser|primaryuser|userprincipalname"),
    "group": re.compile("group|devicegroup|groupname"),
}
_IDENTITIES = re.compile("mac|macs|.+mac|mac(?:address|addr|adres).*|.*address(?:es)?|.*adresse[ns]?|serial.*|.*serial")
#: Words of names that have `mac`, `address` or `serial` in them and are about something else.
_ELSEWHERE = frozenset(
    [
        "os",
        "osx",
        "version",
        "model",
        "book",
        "mini",
        "pro",
        "air",
        "studio",
        "bluetooth",
        "bt",
        "ble",
        "vendor",
        "manufacturer",
        "email",
        "mail",
        "street",
        "postal",
        "home",
        "office",
        "billing",
        "shipping",
        "web",
        "url",
        "site",
        "city",
        "location",
        "user",
        "users",
        "contact",
        "company",
        "work",
        "person",
        "owner",
        "assigned",
        "manager",
        "supplier",
        "department",
        "building",
        "organization",
        "organisation",
    ]
)
_WORDS = re.compile("[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")


def plain(name: str) -> str:
    """Give a name in small letters, without accents, brackets and what is between words; nothing if it is long."""
    return _plain(name) if len(name) <= MAX_NAME_CHARACTERS else ""


@lru_cache(4096)
def _plain(name: str) -> str:
    text = re.sub(r"[(][^()]*[)]", "", name)
    return re.sub("[^a-z0-9]", "", unicodedata.normalize("NFKD", text).lower())


def column_of(name: str) -> str:
    """Give the column that a tool's name means, or nothing."""
    return _column_of(name) if len(name) <= MAX_NAME_CHARACTERS else ""


@lru_cache(4096)
def _column_of(name: str) -> str:
    if not _SEPARATORS.isdisjoint(name):
        return ""
    text = plain(name)
    return next((column for column, names in _NAMES.items() if names.fullmatch(text)), "")


def looks_like_identity(name: str) -> bool:
    """Say whether a name that means no column looks as if it should: it has a MAC, an address or a serial in it."""
    return len(name) <= MAX_NAME_CHARACTERS and _looks_like_identity(name)


@lru_cache(4096)
def _looks_like_identity(name: str) -> bool:
    words = [word.lower() for word in _WORDS.findall(unicodedata.normalize("NFKD", name))]
    return any(map(_IDENTITIES.fullmatch, words)) and _ELSEWHERE.isdisjoint(words)


def listed(names: Iterable[str]) -> str:
    """List names of columns for people; what cannot be printed is escaped."""
    cleaned = [" ".join(name.split())[:MAX_NAME_CHARACTERS] for name in names]
    shown = [name if name.isprintable() else ascii(name)[1:-1] for name in dict.fromkeys(cleaned) if name]
    more = len(shown) - MAX_LISTED
    return ", ".join(shown[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")

"""JSON as the APIs of asset tools give it: where its list is, whether it is all of it, and values inside objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from blockd.devices.inventory.cells import has_values
from blockd.devices.inventory.columns import column_of, listed, looks_like_identity, plain
from blockd.devices.inventory.record import Record
from blockd.devices.inventory.text import lines_of_text
from blockd.problems import InputError, Problem
from blockd.settings.values import read_digits

NO_OBJECT = "not an object"
NOT_JSON = "this line is not JSON"
TOO_LARGE = "an object of more than 10000 values"

#: Keys under which tools put their list.
LISTS = (
    *(
        "devices",
        "value",
        "rows",
        "results",
        "computers",
        "mobile_devices",
        "mobileDevices",
        "managedDevices",
        "assets",
    ),
    *(
        "items",
        "data",
        "records",
        "result",
        "hosts",
        "clients",
        "nodes",
        "machines",
        "inventory",
        "entries",
        "response",
    ),
)
#: Objects around a list, and around what is looked for in a record.
MAX_DEPTH = 6
#: Values that are looked at in one record.
MAX_VALUES = 10_000
#: Parts of a device: what is in them is the device's own. By `plain` name.
_PARTS = frozenset(
    [
        "general",
        "device",
        "computer",
        "host",
        "asset",
        "machine",
        "attributes",
        "properties",
        "fields",
        "details",
        "info",
        "system",
        "hardware",
        "hardwareinformation",
        "data",
        "source",
        "inventory",
        "identification",
    ]
)
#: Cards of a device, or a list of them: their names are not the device's.
_CARDS = frozenset(
    [
        "network",
        "networks",
        "networking",
        "networkinfo",
        "networkinformation",
        "networkinterface",
        "networkinterfaces",
        "netinterfaces",
        "interface",
        "interfaces",
        "networkadapter",
        "networkadapters",
        "adapter",
        "adapters",
        "networkcards",
        "nic",
        "nics",
        "ethernet",
        "wifi",
        "wlan",
        "wireless",
        "lan",
    ]
)
#: Columns that a site added: an object by name, or a list of names and values.
_FIELDS = frozenset(
    [
        "customfields",
        "customfield",
        "customattributes",
        "customproperties",
        "extensionattributes",
        "extrafields",
        "additionalfields",
    ]
)
#: Objects whose `value` or the like is what the key above them means.
_VALUES = ("value", "values", "address", "addr", "mac", "macAddress", "mac_address", "display_value")
_NAMES = ("name", "key", "label", "title", "fieldName", "field")
#: Objects that say which page this is.
_PAGES = ("links", "_links", "meta", "pagination", "paging", "page", "pageInfo", "@odata")
_NEXT = re.compile(
    "(?:odata)?next(?:link|page|pageurl|pagetoken|cursor|token|url|href)?|has(?:more|next).*|continuationtoken"
)
_TOTALS = frozenset(
    ["total", "totalcount", "totalresults", "totalitems", "totalelements", "totalrecords", "odatacount", "count"]
)
_PAGE_COUNTS = frozenset(["totalpages", "lastpage", "pagecount", "pages"])


class Objects:
    """A list of objects. InputError when there is none, or when no object has a MAC or an address."""

    def __init__(self, file: Path, text: str) -> None:
        """Find the list."""
        self._file = file
        #: Whether it is JSON Lines, of which what was cut off at its end still reads.
        self.has_lines = False
        self._around: list[dict[str, Any]] = []
        self._unread: dict[str, None] = {}
        self._items = self._find(text)

    @property
    def notes(self) -> list[Problem]:
        """Say whether this is one page of several, and which keys look like identity and are not read."""
        notes = []
        if self._unread:
            text = f"keys that are not read, though they look like identity: {listed(self._unread)}"
            notes.append(Problem(str(self._file), 0, "", text))
        if (sign := _more_pages(self._around, len(self._items))) is not None:
            text = f"one page of several, and not all devices ({sign}): fetch the other pages, too"
            notes.append(Problem(str(self._file), 0, "", text))
        return notes

    def records(self) -> Iterator[tuple[int, Record | str]]:
        """Give each object of the list with its number, or the reason why it cannot be used."""
        has_identity = False
        for number, item in self._items:
            if not isinstance(item, dict):
                yield number, item if item is NOT_JSON else NO_OBJECT
                continue
            one = _Reading()
            one.read(item, "", 0, is_card=False)
            has_identity |= one.has_identity
            if len(self._unread) < MAX_VALUES:
                self._unread.update(one.unread)
            yield number, one.record if one.left >= 0 else TOO_LARGE
        objects = [item for _, item in self._items if isinstance(item, dict)]
        if objects and not has_identity:
            text = f"no object has a MAC or an address; the keys of the first: {_keys(objects[0])}"
            if self._unread:
                text += f"; keys that look like identity and are not read: {listed(self._unread)}"
            raise InputError([Problem(str(self._file), 1, "", text)])

    def _find(self, text: str) -> list[tuple[int, Any]]:
        try:
            values = _loads(text)
        except (ValueError, RecursionError) as error:
            lines = _json_lines(text)
            if lines is not None:
                self.has_lines = True
                return lines
            line = getattr(error, "lineno", 1)
            raise InputError([Problem(str(self._file), line, "", "this is not JSON, or it is cut off")]) from None
        found = values if isinstance(values, list) else self._list_in(values, 0)
        if found is None:
            keys = f"; found: {_keys(self._around[0])}" if self._around else ""
            text = f'expected a list of objects, or {{"devices": [...]}}{keys}'
            raise InputError([Problem(str(self._file), 1, "", text)])
        return list(enumerate(found, 1))

    def _list_in(self, value: Any, depth: int) -> list[Any] | None:
        """Find the list in an object: under a usual key, or the object as a device itself, or the only list."""
        if not isinstance(value, dict) or depth > MAX_DEPTH:
            return None
        self._around.append(value)
        for key in LISTS:
            if isinstance(value.get(key), list):
                return list(value[key])
        one = _Reading()
        one.read(value, "", 0, is_card=False)
        if any(one.record.get(column) for column in ("mac", "address")):
            # PowerShell writes one object without a list around it.
            return [value]
        lists = [
            inner for inner in value.values() if isinstance(inner, list) and any(isinstance(i, dict) for i in inner)
        ]
        if len(lists) == 1:
            return lists[0]
        objects = [value[key] for key in LISTS if isinstance(value.get(key), dict)]
        objects = objects or [inner for inner in value.values() if isinstance(inner, dict)]
        return self._list_in(objects[0], depth + 1) if len(objects) == 1 else None


class _Reading:
    """One object: its values by column, and the keys that look like identity and mean nothing here."""

    def __init__(self) -> None:
        self.record: Record = {}
        self.unread: dict[str, None] = {}
        self.has_identity = False
        self.left = MAX_VALUES

    def read(self, value: dict[str, Any], path: str, depth: int, *, is_card: bool) -> None:
        for key, inner in value.items():
            self.left -= 1
            if self.left < 0:
                return
            self._read_one(key, inner, path, depth, is_card=is_card)

    def _read_one(self, key: str, inner: Any, path: str, depth: int, *, is_card: bool) -> None:
        column, name = column_of(key), plain(key)
        if column and isinstance(inner, dict) and "value" in inner:
            inner = inner["value"]
        is_text = column == "group" or not isinstance(inner, dict)
        if column in ("mac", "address") or (column and not is_card and is_text):
            self.has_identity |= column in ("mac", "address")
            self.record.setdefault(column, []).extend(self._texts(inner, depth))
        elif name in _FIELDS and depth < MAX_DEPTH:
            for own, field in _fields(inner):
                self.left -= 1
                if self.left >= 0 and plain(own) not in _FIELDS:
                    self._read_one(own, field, f"{path}{key}.", depth + 1, is_card=False)
        elif (name in _PARTS or name in _CARDS) and depth < MAX_DEPTH:
            for part in inner if isinstance(inner, list) else [inner]:
                if isinstance(part, dict):
                    self.read(part, f"{path}{key}.", depth + 1, is_card=is_card or name in _CARDS)
        elif isinstance(inner, dict):
            for own in inner:
                self.left -= 1
                if self.left >= 0 and looks_like_identity(f"{key} {own}"):
                    self.unread[f"{path}{key}.{own}"] = None
        elif looks_like_identity(key):
            self.unread[f"{path}{key}"] = None

    def _texts(self, value: Any, depth: int) -> list[str]:
        """Give the texts of a value: of a list each, of an object its `value` or the like, or else each."""
        self.left -= 1
        if self.left < 0 or depth > MAX_DEPTH or value is None or isinstance(value, bool | float):
            return []
        if isinstance(value, dict):
            named = [value[key] for key in _VALUES if key in value]
            value = named[:1] or list(value.values())
        if isinstance(value, list):
            return [text for one in value for text in self._texts(one, depth + 1)]
        return [str(value)]


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Give names and values of fields that a site added, in either form."""
    if isinstance(value, dict):
        for key, inner in value.items():
            is_wrapped = isinstance(inner, dict) and "value" in inner
            yield key, inner["value"] if is_wrapped else inner
    for one in value if isinstance(value, list) else []:
        if isinstance(one, dict):
            name = next((one[key] for key in _NAMES if isinstance(one.get(key), str)), None)
            inner = next((one[key] for key in ("value", "values") if key in one), None)
            if name is not None:
                yield name, inner


def _keys(value: dict[str, Any]) -> str:
    """List keys, but for those of devices: their names may be private."""
    if has_values(value) or (len(value) > 1 and all(isinstance(inner, dict) for inner in value.values())):
        return "one object for each device"
    return listed(value) or "none"


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object, parse_int=read_digits, strict=False)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object; of a key that it has twice, both values are kept, for either may be the device's MAC."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice: dict[str, list[Any]] = {}
        for key, inner in pairs:
            twice.setdefault(key, []).append(inner)
        value = {key: inner[0] if len(inner) == 1 else inner for key, inner in twice.items()}
    return value


def _json_lines(text: str) -> list[tuple[int, Any]] | None:
    """Give the values of JSON Lines, one a line; None where neither the first nor most of them are objects."""
    items: list[tuple[int, Any]] = []
    for number, line in enumerate(lines_of_text(text), 1):
        if not line.strip():
            continue
        try:
            value = _loads(line)
        except (ValueError, RecursionError):
            value = NOT_JSON
        items.append((number, value))
    objects = [number for number, value in items if isinstance(value, dict)]
    # Of an array that was cut off, with one object a line, the last line at most is an object by itself.
    is_lines = len(objects) > 0 and (objects[0] == items[0][0] or 2 * len(objects) > len(items))
    return items if is_lines and len(items) > 1 else None


def _more_pages(around: Iterable[dict[str, Any]], found: int) -> str | None:
    """Give what says that there is more than was found; null, nothing and a total that fits say nothing."""
    for value in around:
        pages = [value, *(inner for key in _PAGES if isinstance(inner := value.get(key), dict))]
        pages += [inner for page in pages[1:] for key in _PAGES if isinstance(inner := page.get(key), dict)]
        for page in pages:
            for key, inner in page.items():
                name = plain(key.replace("@", ""))
                is_number = isinstance(inner, int) and not isinstance(inner, bool)
                is_empty = not inner or (isinstance(inner, str) and inner.strip().lower() in ("null", "none"))
                if not is_empty and _NEXT.fullmatch(name):
                    return listed([key])
                if is_number and ((name in _TOTALS and inner > found) or (name in _PAGE_COUNTS and inner > 1)):
                    return f"{listed([key])}: {inner}"
        links = value.get("links")
        for link in links if isinstance(links, list) else []:
            if isinstance(link, dict) and link.get("rel", link.get("relation")) == "next":
                return "links: next"
    return None

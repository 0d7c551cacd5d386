"""YAML with places: plain values, and the line of each, so that every complaint can point at one."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable
from contextlib import suppress
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import yaml

from blockd.problems import InputError, Problem

if TYPE_CHECKING:
    # Who only reads values has no need of it, and it takes longer to import than a command may.
    from pydantic import BaseModel

Path = tuple[str | int, ...]
Model = TypeVar("Model", bound="BaseModel")

#: A config of 100,000 inventory lines has them in a file of their own; more than this is a mistake or an attack.
MAX_OCTETS = 4 << 20
MAX_DEPTH = 20

#: libyaml's where PyYAML has it: ten times as fast.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_OPENING = (
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)


class Document:
    """One YAML file: ``values`` as plain Python, ``line(path)`` for where each stands."""

    def __init__(self, file: FilePath, data: bytes) -> None:
        """Read it. InputError when it is no YAML, repeats a key, or uses anchors."""
        self.file = file
        self._lines: dict[Path, int] = {}
        self._constructor = yaml.constructor.SafeConstructor()
        if len(data) > MAX_OCTETS:
            raise self.error((), f"the file has {len(data)} octets, at most {MAX_OCTETS} are read")
        try:
            text = data.decode("utf-8-sig")
            self._look_over(text)
            node = yaml.compose(text, Loader=_LOADER)
            self.values: Any = {} if node is None else self._value(node, ())
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            raise InputError([Problem(str(file), line, "", "the file is not UTF-8")]) from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            what = getattr(error, "problem", None) or str(error)
            line = 0 if mark is None else mark.line + 1
            word = None if mark is None else _unquoted(text, mark.line, mark.column)
            if word is not None and "cannot start any token" in what:
                what = f'{word[0]} cannot begin a value; quote it: "{word}"'
            raise InputError([Problem(str(file), line, "", f"this is no YAML: {what}")]) from None

    def _look_over(self, text: str) -> None:
        """Refuse what must not even be composed: nine lines of anchors can stand for a billion values."""
        depth = 0
        for token in yaml.scan(text, Loader=_LOADER):
            line = token.start_mark.line + 1
            if isinstance(token, yaml.AnchorToken | yaml.AliasToken):
                text = "anchors and aliases (& and *) are not read; write the value out, or quote it"
                raise InputError([Problem(str(self.file), line, "", text)])
            depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
            if depth > MAX_DEPTH:
                raise InputError([Problem(str(self.file), line, "", f"nested more than {MAX_DEPTH} deep")])

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(child, (*path, at)) for at, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            values: dict[Hashable, Any] = {}
            for key_node, child in node.value:
                key = self._scalar(key_node, path)
                if not isinstance(key, str):
                    key = str(key_node.value)
                line = key_node.start_mark.line + 1
                if key in values:
                    first = self._lines[(*path, key)]
                    text = f"the key stands twice, first in line {first}; keep one"
                    raise InputError([Problem(str(self.file), line, ".".join(map(str, (*path, key))), text)])
                self._lines[(*path, key)] = line
                values[key] = self._value(child, (*path, key))
            return values
        return self._scalar(node, path)

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        try:
            return self._constructor.construct_object(node, deep=True)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, yaml.YAMLError):
            line, text = node.start_mark.line + 1, "this value cannot be read; quote it if it is meant as text"
            raise InputError([Problem(str(self.file), line, ".".join(map(str, path)), text)]) from None

    def line(self, path: Path) -> int:
        """Give the line of a value, or of the nearest thing around it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 0)

    def error(self, path: Path, text: str) -> InputError:
        """Make an error about one place."""
        return InputError([self.problem(path, text)])

    def problem(self, path: Path, text: str) -> Problem:
        """Make a problem about one place."""
        return Problem(str(self.file), self.line(path), ".".join(map(str, path)), text)

    def validate(self, model: type[Model]) -> Model:
        """Check the values against a schema. InputError lists all that is wrong at once."""
        from pydantic import ValidationError

        if not isinstance(self.values, dict):
            raise self.error((), "expected keys and values at the top of the file")
        try:
            return model.model_validate(self.values)
        except ValidationError as error:
            found: dict[Path, list[Any]] = {}
            for detail in error.errors():
                path = self._known_part(detail["loc"], is_missing=detail["type"] == "missing")
                found.setdefault(path, []).append(detail)
            problems = [
                self.problem(path, _explain(detail, model, path))
                for path, details in found.items()
                for detail in _one_for_alternatives(path, details, found)
            ]
            raise InputError(list(dict.fromkeys(problems))) from None

    def _known_part(self, loc: tuple[int | str, ...], *, is_missing: bool) -> Path:
        # A schema's alternatives add steps of their own to the path; only what stands in the file is a place.
        path: Path = ()
        for step in loc:
            if (*path, step) in self._lines:
                path = (*path, step)
        if is_missing:
            path = (*path, loc[-1])
        return path


#: What begins with one of these is an error to every reader of YAML, unless it is quoted.
_RESERVED = re.compile(r"[@`%][^\s,:\[\]{}#\"']*")


def _unquoted(text: str, line: int, column: int) -> str | None:
    """Give the word at a place if it needs quotes, such as the name of a set of apps."""
    # Lines as YAML counts them.
    lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", text)
    found = _RESERVED.match(lines[line], column) if line < len(lines) else None
    return None if found is None else found[0]


def _one_for_alternatives(path: Path, details: list[Any], found: Collection[Path]) -> list[Any]:
    """Make one error of those about each alternative to a word, such as `auto` or an integer.

    Errors further down say that the value is the other alternative, so that the word is not meant.
    """
    words = [detail for detail in details if detail["type"] == "literal_error"]
    others = [detail for detail in details if detail["type"] != "literal_error"]
    if any(other != path and other[: len(path)] == path for other in found):
        return others
    if not words or not others:
        return details
    expected = [detail["msg"].removeprefix(_EXPECTED) for detail in (*words, *others)]
    return [{**words[0], "msg": f"{_EXPECTED}{' or '.join(expected)}"}]


#: How pydantic begins what it expects.
_EXPECTED = "Input should be "


def _explain(detail: Any, model: type[BaseModel], path: Path) -> str:
    kind = detail["type"]
    if kind == "extra_forbidden":
        known = ", ".join(_fields_at(model, path[:-1]))
        return f"unknown key; known here: {known}" if known else "unknown key"
    if kind == "missing":
        return "this key is missing"
    text = str(detail["msg"]).removeprefix("Value error, ")
    given = detail["input"]
    if kind == "value_error":
        return text
    text = "expected keys and values" if kind in ("model_type", "dict_type") else f"{text[0].lower()}{text[1:]}"
    if isinstance(given, dict | list):
        return text
    return f"{text}, but {'nothing' if given is None else repr(given)} stands here"


def _fields_at(schema: Any, path: Path) -> list[str]:
    """Name the keys that a schema has at a path."""
    from pydantic import BaseModel

    for step in path:
        if get_origin(schema) in (dict, list):
            schema = get_args(schema)[-1]
        elif isinstance(schema, type) and issubclass(schema, BaseModel) and step in schema.model_fields:
            schema = schema.model_fields[str(step)].annotation
        else:
            return []
    return list(schema.model_fields) if isinstance(schema, type) and issubclass(schema, BaseModel) else []


def find_scalar(file: FilePath, section: str, key: str) -> str | None:
    """Find one value in a file that may be no good otherwise; where it is not YAML, as it is usually written."""
    try:
        data = file.read_bytes()[:MAX_OCTETS]
    except OSError:
        return None
    with suppress(InputError):
        values = Document(file, data).values
        inner = values.get(section) if isinstance(values, dict) else None
        if isinstance(inner, dict) and isinstance(inner.get(key), str):
            return str(inner[key])
    text = data.decode(errors="replace")
    flow = re.search(rf"^{section}:\s*\{{[^}}]*\b{key}:\s*([^,}}\s]+)", text, re.MULTILINE)
    block = re.search(rf"^{section}:\s*(?:#.*)?\n(?:[ \t]+\S.*\n|[ \t]*\n)*?[ \t]+{key}:\s*(\S+)", text, re.MULTILINE)
    found = flow or block
    return found.group(1).strip("\"'") if found else None

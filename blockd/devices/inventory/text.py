"""From octets to lines: the encodings that Excel and PowerShell write, and every kind of line end."""

from __future__ import annotations

import codecs
import re

#: Byte order marks, the longest first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_END = re.compile("\r\n|\r|\n")


def decode(data: bytes) -> str:
    """Read octets as Unicode by their byte order mark, or as UTF-8; what is not UTF-8 is Windows-1252, octet by octet.

    So one name in another encoding changes nothing around it, and no octet is an error: names of columns, MACs and
    addresses are ASCII, and whether they are there is found out later.
    """
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", "utf-8"))
    return data[len(mark) :].decode(encoding, errors=_ERRORS if encoding == "utf-8" else "replace")


def _as_windows_1252(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return error.object[error.start : error.end].decode("cp1252", errors="replace"), error.end


_ERRORS = "blockd.windows-1252"
codecs.register_error(_ERRORS, _as_windows_1252)


def lines_of_text(text: str) -> list[str]:
    """Give the lines; a last one without a line end too, and no empty one after the last line end."""
    lines = _LINE_END.split(text)
    # DOS ends a file with Ctrl-Z.
    return lines[:-1] if lines[-1] in ("", "\x1a") else lines


def ends_within_line(text: str) -> bool:
    """Say whether the last line has no end, as in a file that is being written; some tools never write one."""
    return bool(text) and text[-1] not in "\r\n\x1a"

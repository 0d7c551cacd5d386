"""TSIG keys (RFC 8945): the secrets that blockd and other servers sign zone transfers with."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import dns.name
import dns.tsig


def read_key(name: str, algorithm: str, file: Path) -> dns.tsig.Key:
    """Read a secret, base64 in a file of its own. ValueError says what is wrong with it."""
    try:
        if file.stat().st_mode & 0o007:
            raise ValueError(
                f"transfer.keys.{name}.file: {file}: anybody may read it, and sign with it: chmod 640 {file}"
            )
        secret = base64.b64decode(file.read_text().strip(), validate=True)
    except OSError as error:
        raise ValueError(f"transfer.keys.{name}.file: {file}: {error.strerror}") from None
    except (binascii.Error, UnicodeDecodeError):
        raise ValueError(
            f"transfer.keys.{name}.file: {file}: expected a secret in base64, as tsig-keygen writes it"
        ) from None
    if len(secret) < 16:
        raise ValueError(
            f"transfer.keys.{name}.file: {file}: a secret of {len(secret)} octets can be guessed: give 16 or more"
        )
    return dns.tsig.Key(dns.name.from_text(name), secret, algorithm)

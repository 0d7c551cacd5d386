"""Runs a command for which the kernel lacks an address family, as under a unit's RestrictAddressFamilies.

``python -m tests.support.without_family inet6 COMMAND...``
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import sys

#: Of prctl(2) and linux/seccomp.h.
SET_NO_NEW_PRIVS, SET_SECCOMP, FILTER = 38, 22, 2
RETURN_ERRNO, RETURN_ALLOW = 0x0005_0000, 0x7FFF_0000
#: Of linux/bpf_common.h: load a word, jump if equal, return.
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
#: Where struct seccomp_data has the number of the call, and the first word of its first argument.
NUMBER, ARGUMENT = 0, 16
SOCKET = {"x86_64": 41, "aarch64": 198}
FAMILIES = {"inet": socket.AF_INET, "inet6": socket.AF_INET6}


def forbid(family: int) -> None:
    """Have socket(2) say EAFNOSUPPORT for a family, for this process and those that it becomes or starts."""
    program = b"".join(
        struct.pack("=HBBI", *step)
        for step in (
            (LOAD, 0, 0, NUMBER),
            (EQUAL, 0, 3, SOCKET[platform.machine()]),
            (LOAD, 0, 0, ARGUMENT),
            (EQUAL, 0, 1, family),
            (RETURN, 0, 0, RETURN_ERRNO | errno.EAFNOSUPPORT),
            (RETURN, 0, 0, RETURN_ALLOW),
        )
    )
    steps = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HxxxxxxP", len(program) // 8, ctypes.addressof(steps))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((SET_NO_NEW_PRIVS, 1), (SET_SECCOMP, FILTER)):
        if libc.prctl(option, value, described if option == SET_SECCOMP else 0, 0, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    forbid(FAMILIES[sys.argv[1]])
    os.execvp(sys.argv[2], sys.argv[2:])

"""How commands find the daemon: by its config or by its socket."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from blockd.problems import InputError
from blockd.settings.document import find_scalar
from blockd.settings.load import load_settings
from blockd.settings.schema import Admin
from blockd.settings.source import Disk


def add_socket_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare ``--config`` and ``--socket``."""
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--config", type=Path, help="the daemon's config file")
    place.add_argument("--socket", type=Path, help="the daemon's control socket")


def socket_path(arguments: argparse.Namespace) -> Path:
    """Give the control socket; a config that is broken just now still says where it is."""
    if arguments.socket is not None:
        return Path(arguments.socket)
    config = Path(os.path.abspath(arguments.config))
    try:
        socket = load_settings(config, Disk())[0].admin.socket
    except InputError:
        socket = find_scalar(config, "admin", "socket") or str(Admin.model_fields["socket"].default)
    return Path(os.path.abspath(config.parent / socket))

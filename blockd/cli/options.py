"""Options that commands share, and how they find the daemon: by its config or by its socket."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from blockd.cli.output import complain
from blockd.problems import InputError
from blockd.settings import usual
from blockd.settings.document import Document, find_scalar
from blockd.settings.source import Disk

#: Where the package puts it.
USUAL_CONFIG = Path("/etc/blockd/blockd.yaml")

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", envvar="BLOCKD_CONFIG", help=f"The config file. Default: {USUAL_CONFIG}.", show_default=False
    ),
]
Socket = Annotated[Path | None, typer.Option("--socket", help="The daemon's control socket, in place of its config.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def config_path(config: Path | None) -> Path:
    """Give the config to use. A usage error when none is named and none is at the usual place."""
    if config is not None:
        return config
    if USUAL_CONFIG.exists():
        return USUAL_CONFIG
    raise typer.BadParameter(f"give --config F, or set BLOCKD_CONFIG; there is no {USUAL_CONFIG}")


def socket_path(config: Path | None, socket: Path | None) -> Path:
    """Give the control socket; a config that is broken just now still says where it is."""
    if socket is not None:
        return socket
    file = Path(os.path.abspath(config_path(config)))
    try:
        place = Document(file, Disk().read(file)).values["admin"]["socket"]
        if not isinstance(place, str):
            raise TypeError
    except (KeyError, TypeError):
        place = usual.SOCKET
    except InputError as error:
        place = find_scalar(file, "admin", "socket") or usual.SOCKET
        if place == usual.SOCKET and not Path(place).exists():
            # A config that this user may not read, most likely: without it the daemon cannot be found.
            problem = error.problems[0]
            text = f"{problem.text}; give --socket S, the path that admin.socket names"
            raise InputError([replace(problem, text=text)]) from None
        if place == usual.SOCKET:
            # It may be another, and whoever asks has a broken config to mend.
            complain(f"{error.problems[0]}; looking for the daemon at {usual.SOCKET}, or give --socket S")
    return Path(os.path.abspath(file.parent / place))

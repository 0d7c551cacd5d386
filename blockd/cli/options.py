"""Options that commands share, and how they find the daemon: by its config or by its socket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from blockd.cli.output import complain
from blockd.problems import InputError
from blockd.settings.document import find_scalar
from blockd.settings.load import load_settings
from blockd.settings.schema import Admin
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
        place = load_settings(file, Disk())[0].admin.socket
    except InputError as error:
        usual = str(Admin.model_fields["socket"].default)
        place = find_scalar(file, "admin", "socket") or usual
        if place == usual:
            # It may be another, and whoever asks has a broken config to mend.
            complain(f"{error.problems[0]}; looking for the daemon at {usual}, or give --socket S")
    return Path(os.path.abspath(file.parent / place))

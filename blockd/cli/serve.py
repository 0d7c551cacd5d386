"""``blockd serve``: the daemon."""

from __future__ import annotations

import os

import typer

from blockd.cli.options import Config, config_path
from blockd.cli.output import complain


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(config: Config = None) -> None:
    """Answer queries until SIGINT or SIGTERM."""
    from blockd.observe import log_format

    log_format.set_up()
    from blockd.daemon import Daemon
    from blockd.problems import StartError
    from blockd.stopping import end_process
    from blockd.supervisor import Supervisor

    path = config_path(config)
    try:
        Daemon(path, Supervisor(os.environ)).run()
        end_process()
    except StartError as error:
        complain(f"blockd cannot start: {error}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        # Before the reactor runs, Ctrl-C arrives this way.
        raise typer.Exit(130) from None

"""``blockd serve``: the daemon."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

HELP = "answer queries until SIGINT or SIGTERM"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--config", type=Path, required=True, help="the config file")


def run(arguments: argparse.Namespace) -> int:
    """Serve; 1 when there is nothing that could be served."""
    from blockd.daemon import Daemon, StartError

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        Daemon(arguments.config).run()
    except StartError as error:
        print(f"blockd cannot start: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        # Before the reactor runs, Ctrl-C arrives this way.
        return 130
    return 0

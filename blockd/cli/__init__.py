"""The command line: one file a command."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from blockd import __version__
from blockd.problems import InputError, os_text

#: Every command: its module has ``register(app)``.
COMMANDS = (
    "serve",
    "check",
    "compile",
    "reload",
    "explain",
    "apps",
    "lists",
    "rpz",
    "devices",
    "exempt",
    "report",
    "egress",
    "status",
    "top",
    "schema",
)

#: In the environment, not empty: an unexpected error ends with its traceback.
TRACEBACK = "BLOCKD_TRACEBACK"
#: The commands that go on until they are ended, and what makes others of them.
SERVING = {"serve": frozenset[str](), "egress": frozenset({"plan", "status", "off", "on"})}

#: Exit codes: 0 done, 1 the inputs or the daemon said no, 2 the command line is wrong.
EXIT_NO, EXIT_USAGE = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, give its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    app = typer.Typer(
        name="blockd", no_args_is_help=True, pretty_exceptions_enable=False, context_settings={"max_content_width": 100}
    )

    @app.callback()
    def blockd(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
        ] = False,
    ) -> None:
        """A resolver that bans an app from the devices you own, and from no others."""

    # A command that is named is imported alone: a reload should not wait for what other commands need.
    for name in COMMANDS if not words or words[0] not in COMMANDS else words[:1]:
        module: Any = importlib.import_module(f"blockd.cli.{name}")
        module.register(app)
    is_serving = words[0] in SERVING and SERVING[words[0]].isdisjoint(words) if words else False
    if isinstance(sys.stdout, io.TextIOWrapper) and not is_serving:
        # One character that the encoding lacks must not cost what else a command prints. Of stderr that is usual. A
        # process that serves prints nothing, and must not wait for a reader that stalls, as this would.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        app(words, prog_name="blockd")
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(bool(ending.code))
    except InputError as error:
        if "--json" in words:
            print(json.dumps({"ok": False, "problems": [problem.as_json() for problem in error.problems]}))
        else:
            print(error, file=sys.stderr)
        return EXIT_NO
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        return EXIT_NO
    except Exception as error:
        # A process that serves leaves a trace in its log, unless the system itself says what to do.
        if os.environ.get(TRACEBACK) or (is_serving and not isinstance(error, PermissionError)):
            raise
        _tell(words, error)
        return EXIT_NO
    return 0


def _tell(words: list[str], error: Exception) -> None:
    """Print in one line why a command failed, in the form that was asked for."""
    if isinstance(error, OSError):
        text = os_text(error)
        if isinstance(error, PermissionError):
            text += "; run this as root or as the daemon's user"
    else:
        text = f"failed unexpectedly: {type(error).__name__}: {error}; {TRACEBACK}=1 shows where"
    command = " ".join(word for word in words[:1] if not word.startswith("-"))
    if "--json" in words:
        print(json.dumps({"ok": False, "error": text}))
    else:
        print(f"{f'blockd {command}'.strip()}: {text}", file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"blockd {__version__}")
        raise typer.Exit

"""``blockd schema``: the JSON Schemas by which editors check and complete the files."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from blockd.apps.catalogue import App, Extension
from blockd.cli.output import print_json
from blockd.settings.schema import Settings


class File(StrEnum):
    """The files that have one."""

    config = "config"
    app = "app"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(schema)


def schema(
    of: Annotated[File, typer.Argument(help="config: the config file; app: a file of the catalogue.")] = File.config,
) -> None:
    """Print a JSON Schema, for editors."""
    print_json(schema_of(of))


def schema_of(of: File) -> dict[str, Any]:
    """Make it."""
    if of is File.config:
        made = Settings.model_json_schema()
        title = "blockd's config file"
    else:
        app, extension = App.model_json_schema(), Extension.model_json_schema()
        definitions = {**app.pop("$defs", {}), **extension.pop("$defs", {})}
        made = {"$defs": definitions, "oneOf": [app, extension]}
        title = "an app of blockd's catalogue, or an extension of one"
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        **{k: v for k, v in made.items() if k != "title"},
    }

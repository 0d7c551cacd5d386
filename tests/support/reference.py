"""docs/configuration.md and docs/metrics.md, written from the code: ``python -m tests.support.reference``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from prometheus_client.core import Metric
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from blockd.apps.catalogue import App
from blockd.settings.schema import RESTART_KEYS, Settings

HEAD = """# The config file

Every key, with its default. `blockd check --config F` says whether a file is good by itself, what it would enforce, and
what looks wrong in it; a reload also compares it with what is in force.
Unknown keys are errors, and so are anchors (`&`, `*`). Paths are relative to the file. A reload takes every key in but
those marked *restart*: a reload that changes one of these is refused and names it.

"""


METRICS_HEAD = """# Metrics

Everything on `/metrics`. Counters end in `_total` and never go back while the daemon runs, whatever is reloaded; those
of an upstream begin anew when the config names it again after a while without it.
Labels are bounded: groups and apps of the config, and words from the code; never a client, a name or a rule.

`blockd_answer_seconds` is about UDP. A hit (or a block, or anything answered at once) took as long as its batch, from
the return of recvmmsg to the return of sendmmsg; a miss from the return of the recvmmsg that brought its query to the
return of the sendmmsg that took its reply. Not in it: time in socket buffers, in the network card and on the wire, and
all of TCP.

"""


def metrics() -> str:
    """Give docs/metrics.md: every family that a daemon exposes, with its labels."""
    rows = ["| metric | type | labels | what it is |", "| --- | --- | --- | --- |"]
    for family in sample_families():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in family_labels(family))
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return METRICS_HEAD + "\n".join(rows) + "\n"


def family_labels(family: Metric) -> list[str]:
    """Name a family's labels, from what it was declared with."""
    return list(getattr(family, "_labelnames", ()))


def sample_families() -> list[Metric]:
    """Collect from a hot path that serves nobody."""
    from unittest.mock import Mock

    from blockd.endpoint import Endpoint
    from blockd.observe.decisions_log import DecisionsLog
    from blockd.observe.metrics import DecisionCounts, Metrics, ReloadCounts
    from blockd.resolver.routes import Health
    from blockd.transport.block_page import BlockPage
    from blockd.transport.tcp import StreamCounts
    from tests.properties.test_decision import compile_policy

    fastpath = compile_policy({}, {})
    tcp = Mock(counts=StreamCounts(), open_connections=0)
    server = Endpoint.from_native(fastpath.servers()[0]["endpoint"])
    routes = Mock(health={server: Health(latency=0.01)})
    page = BlockPage(lambda *_: None)
    streams = Mock(under_way=0, refused=0)
    decisions = (DecisionCounts(), DecisionsLog())
    collector = Metrics(fastpath, tcp, streams, routes, ReloadCounts(), *decisions, page)
    return list(collector.collect())


def configuration() -> str:
    """Give docs/configuration.md."""
    rows = ["| key | default | what it is |", "| --- | --- | --- |", *_rows(Settings, "")]
    apps = ["| key | default | what it is |", "| --- | --- | --- |", *_rows(App, "")]
    return f"{HEAD}{chr(10).join(rows)}\n\n## An app's file\n\n{chr(10).join(apps)}\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        section = _section(field.annotation)
        if section is None:
            restart = " *Restart.*" if key in RESTART_KEYS else ""
            text = (field.description or "").replace(" Restart.", "")
            yield f"| `{key}` | {_default(field)} | {text}{restart} |"
        else:
            inner, steps = section
            yield from _rows(inner, f"{key}.{steps}")


def _section(annotation: Any) -> tuple[type[BaseModel], str] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, ""
    arguments = get_args(annotation)
    if arguments and isinstance(arguments[-1], type) and issubclass(arguments[-1], BaseModel):
        return arguments[-1], "NAME." if get_origin(annotation) is dict else "N."
    return None


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if isinstance(field.json_schema_extra, dict):
        # As it is written in the file, where that is not how it is kept.
        value = field.json_schema_extra.get("default", value)
    if value in (None, [], {}):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    docs = Path(__file__).parents[2] / "docs"
    (docs / "configuration.md").write_text(configuration())
    (docs / "metrics.md").write_text(metrics())

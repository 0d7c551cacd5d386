"""A real Prometheus over a real daemon, and the dashboard's panels as questions to it."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.support.daemon import free_port

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "config" / "grafana" / "blockd.json"


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the panels that ask something."""
    return (panel for panel in dashboard["panels"] if panel.get("targets"))


def filled_in(expression: str, interval: str, range_: str) -> str:
    """Put values in place of Grafana's variables: everything is chosen."""
    for name, value in (("__rate_interval", interval), ("__range", range_), ("instance", ".*"), ("group", ".*")):
        expression = expression.replace(f"${name}", value)
    assert "$" not in expression, expression
    return expression


def metric_names(expression: str) -> set[str]:
    """Name the metrics of an expression."""
    return set(re.findall(r"\bblockd_[a-z]\w+", expression))


class Prometheus:
    """Debian's Prometheus, scraping one daemon every second; use it as a context."""

    def __init__(self, directory: Path, target: str, interval: str = "1s") -> None:
        """Write its configuration, with our alert rules."""
        self._directory = directory
        self.port = free_port()
        config = yaml.safe_load((ROOT / "config" / "prometheus" / "prometheus.yml").read_text())
        config["global"]["scrape_interval"] = interval
        config["rule_files"] = [str(ROOT / "config" / "prometheus" / "blockd.rules.yml")]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [target]
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))

    def __enter__(self) -> Prometheus:
        """Run it."""
        command = ["prometheus", f"--config.file={self._directory / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={self._directory / 'data'}", f"--web.listen-address=127.0.0.1:{self.port}"]
        with (self._directory / "prometheus.log").open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                self.ask("query", query="1")
                return self
            except OSError:
                time.sleep(0.1)
        raise AssertionError((self._directory / "prometheus.log").read_text())

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(20)

    def ask(self, what: str, **arguments: str) -> Any:
        """Ask its API; give the data."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            answer = json.loads(reply.read())
        assert answer["status"] == "success", answer
        return answer["data"]

    def range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Give the series of an expression over a time."""
        arguments = {"query": expression, "start": f"{start}", "end": f"{end}", "step": f"{step}"}
        series: list[dict[str, Any]] = self.ask("query_range", **arguments)["result"]
        return series

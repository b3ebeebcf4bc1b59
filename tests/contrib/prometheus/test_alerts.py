"""The alert rules of docs/observability.md: they parse, and name metrics that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from eventlogs.contrib.prometheus.collector import HealthCollector
from eventlogs.contrib.prometheus.metrics import Metrics
from tests.processes import ROOT

PAGE = (ROOT / "docs" / "observability.md").read_text()
[RULES] = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)


def metrics() -> dict[str, set[str]]:
    """Return the labels of all metrics, by the names of their series."""
    registry = CollectorRegistry()
    Metrics(registry)
    collectors: Any = registry._collector_to_names
    found = {
        name: set(metric._labelnames) for metric, names in collectors.items() for name in names
    }
    for family in HealthCollector().describe():
        found[family.name] = set(family._labelnames)
    return found


def test_rules_name_metrics_and_labels_that_exist():
    known = metrics()
    [group] = yaml.safe_load(RULES)["groups"]

    assert len(group["rules"]) == 7
    for rule in group["rules"]:
        assert set(rule) == {"alert", "expr", "for", "annotations"}
        named = re.findall(r"\beventlogs_\w+", rule["expr"])
        assert named
        labels = set.union(*(known[name] for name in named))
        used = {
            label
            for some in re.findall(r"by \(([^)]*)\)", rule["expr"])
            for label in some.split(", ")
        }
        used |= set(re.findall(r"(\w+)=\"", rule["expr"]))
        used |= set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert used <= labels, rule["alert"]


def test_rules_pass_the_tool_of_prometheus_where_it_is(tmp_path):
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed: the test above has parsed the rules")
    rules = tmp_path / "rules.yml"
    rules.write_text(RULES)

    subprocess.run([tool, "check", "rules", rules], check=True, capture_output=True)


def test_the_page_has_each_metric():
    # Its tables name some without the prefix of their group.
    series = {name for name in metrics() if not name.endswith(("_created", "_bucket", "_sum"))}
    missing = {name for name in series if name.removesuffix("_count") not in PAGE}

    assert {name for name in missing if f"{name}_total" not in PAGE} == set()

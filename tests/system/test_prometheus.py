"""Prometheus reads its configuration; each alert fires when it should, is of metrics that exist, and is explained."""

from __future__ import annotations

import re

import pytest

from bench.dashboard.queries import DOCKER
from tests.promtool import Promtool
from tests.system.dashboard_names import metric_names, names_in

FOLDER = DOCKER / "prometheus"
RULES = (FOLDER / "rules.yml").read_text()
TESTS = [FOLDER / "rules_test.yml", FOLDER / "objectives_test.yml"]
TESTED = "".join(file.read_text() for file in TESTS)
RUNBOOK = (DOCKER.parent / "docs" / "runbook.md").read_text()
OBSERVABILITY = (DOCKER.parent / "docs" / "observability.md").read_text()
ALERTS = re.findall(r"- alert: (\w+)", RULES)


def test_prometheus_can_read_its_configuration(promtool: Promtool) -> None:
    promtool("check", "config", FOLDER / "prometheus.yml")


def test_alerts_fire_when_they_should(promtool: Promtool) -> None:
    promtool("test", "rules", *TESTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_tested_and_explained(alert: str) -> None:
    assert re.search(rf"alertname: {alert}\n\s+eval_time: \w+\n\s+exp_alerts:\n", TESTED), "it fires in no test"
    assert f"\n## {alert}\n" in RUNBOOK
    assert f"runbook_url: '{{{{ $externalLabels.runbook }}}}#{alert.lower()}'\n" in RULES


def test_the_runbook_has_no_entry_of_an_alert_that_is_gone() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == ALERTS


@pytest.mark.parametrize("text", [RULES, TESTED], ids=["rules", "tests"])
def test_rules_are_of_metrics_that_some_process_has(text: str) -> None:
    assert names_in(text) <= metric_names()


def test_every_metric_is_documented() -> None:
    ours = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in metric_names() if name.startswith("msf_")}
    assert {name for name in ours if f"`{name}" not in OBSERVABILITY} == set()
    documented = {re.sub(r"_total$", "", name) for name in re.findall(r"^\| `(msf_\w+)", OBSERVABILITY, re.MULTILINE)}
    assert documented == ours

"""The rules are well formed, every alert fires when it should and only then, and leads to its runbook."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from preceptor_service.metrics import SERVICE_CODES
from tests.observability.rule_files import RULE_FILES, TEST_FILES, alerts, rules, write_faster


def _promtool(promtool: Path, *arguments: str | Path) -> str:
    """What promtool says; fails the test where promtool finds fault."""
    told = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
    return told.stdout


@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.stem)
def test_promtool_finds_no_fault_with_the_rules(path: Path, promtool: Path) -> None:
    _promtool(promtool, "check", "rules", "--lint=all", "--lint-fatal", path)


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.name.removesuffix(".test.yaml"))
def test_alerts_fire_when_they_should_and_only_then(path: Path, promtool: Path) -> None:
    _promtool(promtool, "test", "rules", path)


def test_every_alert_is_shown_to_fire_and_shown_to_keep_still() -> None:
    fires: defaultdict[str, set[bool]] = defaultdict(set)
    for path in TEST_FILES:
        for test in yaml.safe_load(path.read_text())["tests"]:
            keeps_still_throughout = all(not check["exp_alerts"] for check in test["alert_rule_test"])
            for check in test["alert_rule_test"]:
                if check["exp_alerts"] or keeps_still_throughout:
                    fires[check["alertname"]].add(bool(check["exp_alerts"]))
    assert dict(fires) == {alert["alert"]: {True, False} for alert in alerts()}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_says_how_bad_it_is_what_it_saw_and_what_to_do(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"Preceptor([A-Z][a-z]+)+", alert["alert"])
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    annotations = alert["annotations"]
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert annotations["summary"].endswith(".")
    assert "{{" not in annotations["summary"], "the summary is the same for every series, so that they group"
    assert "$value" in annotations["description"]
    assert annotations["runbook_url"] == f"docs/alerts.md#{alert['alert'].lower()}"


def test_every_alert_has_its_heading_in_the_runbooks_and_every_heading_its_alert(repository: Path) -> None:
    page = (repository / "docs" / "alerts.md").read_text()
    headings = re.findall(r"^#+ (Preceptor\w+)$", page, re.MULTILINE)
    assert headings == [alert["alert"] for alert in alerts()]


def test_names_of_recorded_series_say_what_was_recorded() -> None:
    for rule in rules():
        if "record" in rule:
            assert re.fullmatch(r"preceptor:[a-z_]+:(ratio_)?rate(5m|30m|1h|6h)", rule["record"])
            assert f"[{rule['record'].rpartition('rate')[2]}]" in rule["expr"]


def test_the_error_objective_counts_the_codes_that_are_the_services_own() -> None:
    counted = set(re.findall(r'preceptor_failed_super_batches_total\{code=~"([^"]+)"', str(list(rules()))))
    assert counted == {"|".join(SERVICE_CODES)}


def test_the_faster_copy_differs_in_durations_alone(tmp_path: Path, promtool: Path) -> None:
    durations = re.compile(r"\b\d+(ms|s|m|h)(?=[\]:]|\\n|$)", re.MULTILINE)
    for original, faster in zip(RULE_FILES, write_faster(tmp_path), strict=True):
        before, after = (yaml.safe_dump(yaml.safe_load(path.read_text()), width=10_000) for path in (original, faster))
        assert durations.sub("", before) == durations.sub("", after)
        assert set(durations.findall(before)) <= {"m", "h"}
        assert set(durations.findall(after)) == {"ms"}
        _promtool(promtool, "check", "rules", faster)

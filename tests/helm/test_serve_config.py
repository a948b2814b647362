"""The Serve configuration inside the RayService: what Serve accepts, and the service's configuration untouched."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from preceptor_service.config import parse_config
from tests.helm.rendering import CHART, VALUES, render

ALLOWED = {"proxy_location", "applications"}
ALLOWED_OF_AN_APPLICATION = {"name", "import_path", "route_prefix", "args"}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """What helm makes of values: mappings merge, everything else replaces, null removes."""
    merged = dict(below)
    for key, value in above.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def _values(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


@pytest.mark.parametrize("values", VALUES)
def test_serve_accepts_the_configuration_and_knows_every_key(values: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    serve = render(values).serve
    accepted = ServeDeploySchema.model_validate(serve)

    assert set(serve) == ALLOWED
    assert [set(application) for application in serve["applications"]] == [ALLOWED_OF_AN_APPLICATION]
    assert accepted.proxy_location == "Disabled"
    assert accepted.applications[0].route_prefix is None


@pytest.mark.parametrize("values", VALUES)
def test_the_application_is_one_that_the_service_has(values: str) -> None:
    (application,) = render(values).serve["applications"]
    module, _, name = application["import_path"].partition(":")

    assert callable(getattr(importlib.import_module(module), name))
    assert application["name"] == parse_config(application["args"]).name


@pytest.mark.parametrize("values", VALUES)
def test_the_configuration_loads_and_is_what_the_values_say(values: str) -> None:
    said = _merged(_values(CHART / "values.yaml"), _values(CHART / "ci" / f"{values}-values.yaml"))["config"]
    given = render(values).config

    assert given == said
    config = parse_config(given)
    assert config == parse_config(said)
    assert not config.is_insecure


def test_the_default_configuration_of_the_chart_loads() -> None:
    config = parse_config(_values(CHART / "values.yaml")["config"])

    assert config.tls is not None
    assert config.auth is not None
    assert not config.is_insecure


def test_settings_that_the_chart_does_not_read_reach_the_service_as_they_are() -> None:
    odd = {
        "limits": {"max_runs": 17},
        "architectures": {"a": "b.c:d"},
        "tracing": {"endpoint": "http://collector:4317", "sample_ratio": 0.25},
    }
    given = render(changes={"config": odd}).config

    assert {key: given[key] for key in odd} == odd


def test_the_chart_accepts_every_setting_of_the_service_by_its_default() -> None:
    reference = yaml.safe_load((CHART.parents[1] / "deploy" / "config.yaml").read_text())
    ours = _values(CHART / "values.yaml")["config"]
    # What the chart has to have otherwise; null is what `null` in values removes.
    wanted = _merged(reference, ours)
    given = render(changes={"config": wanted}).config

    assert parse_config(given) == parse_config(wanted)
    assert {key for key in reference if reference[key] is not None} <= given.keys()


def test_large_numbers_stay_whole() -> None:
    given = render(changes={"config": {"weights": {"max_bytes": 4398046511104}}}).config

    assert given["weights"]["max_bytes"] == 4398046511104
    assert isinstance(given["weights"]["max_bytes"], int)


def test_null_removes_a_section() -> None:
    rendering = render(
        changes={"config": {"tls": None, "auth": {"allow_plaintext": True}}, "tls": {"existingSecret": ""}}
    )

    assert "tls" not in rendering.config
    assert parse_config(rendering.config).tls is None
    assert "--tls" not in rendering.container("gateway")["readinessProbe"]["exec"]["command"]
    assert "tls" not in {mount["name"] for mount in rendering.container("gateway")["volumeMounts"]}

"""Every file and directory that `config` names is mounted on the pods that read it, or refused."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from pydantic import BaseModel

from preceptor_service.config import ServiceConfig
from tests.helm.rendering import RefusedError, Rendering, render

NOWHERE = "/nowhere/file"
OIDC = {"issuer": "https://login.example.com", "audience": "preceptor"}
SURROUNDINGS: dict[str, dict[str, Any]] = {
    "tracing.ca": {"tracing": {"endpoint": "https://collector:4317"}},
    "auth.oidc.jwks_file": {"auth": {"oidc": OIDC}},
    "auth.oidc.jwks_ca": {"auth": {"oidc": {**OIDC, "jwks_url": "https://login.example.com/keys"}}},
    "weights.cache_path": {"weights": {"path": "s3://bucket/weights"}},
}
"""What a setting needs beside it."""


def settings(section: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, list[Any]]]:
    """Yields each setting of a section with the types it may have, and those of the sections below."""
    for name, field in section.model_fields.items():
        kinds = list(_kinds(field.annotation))
        yield ".".join((*path, name)), kinds
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from settings(kind, (*path, name))


def _kinds(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) in (typing.Union, typing.Annotated):
        for inner in typing.get_args(annotation):
            yield from _kinds(inner)
    else:
        yield annotation


FILES = sorted(name for name, kinds in settings(ServiceConfig) if Path in kinds)
"""Every setting that is a path."""


def with_path(setting: str, path: str, **more: Any) -> dict[str, Any]:
    """Returns values whose `config` names a path, with what that needs beside it."""
    config: dict[str, Any] = {path: dict(values) for path, values in SURROUNDINGS.get(setting, {}).items()}
    *sections, last = setting.split(".")
    place = config
    for section in sections:
        place[section] = dict(place.get(section, {}))
        place = place[section]
    place[last] = path
    return {"config": config, "tls": {"probe": {"certificateSecret": "probe"}}, **more}


def holders(rendering: Rendering, path: str) -> set[str]:
    """Returns the groups that mount a path, or a folder above it."""
    wanted = PurePosixPath(path)
    return {
        group
        for group in rendering.groups
        for mount in rendering.container(group)["volumeMounts"]
        if wanted.is_relative_to(mount["mountPath"])
    }


def test_the_settings_that_are_paths_are_found() -> None:
    assert {"audit.file", "auth.oidc.jwks_file", "reference_losses.directory", "tracing.ca", "weights.path"} < set(
        FILES
    )


MOUNTED = {"weights.path", "weights.cache_path"}
"""Paths at which the chart mounts a volume, whatever they are."""


@pytest.mark.parametrize("setting", sorted(MOUNTED))
def test_the_chart_mounts_what_is_its_own_wherever_it_shall_be(setting: str) -> None:
    assert holders(render(changes=with_path(setting, NOWHERE)), NOWHERE) == {"gateway", "cpu"}


@pytest.mark.parametrize("setting", sorted(set(FILES) - MOUNTED))
def test_a_path_that_nothing_mounts_is_refused(setting: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        render(changes=with_path(setting, NOWHERE))
    assert f"config.{setting} is {NOWHERE}, and nothing is mounted there" in str(refusal.value)
    assert "extraVolumeMounts" in str(refusal.value)


@pytest.mark.parametrize("setting", FILES)
def test_a_path_on_a_volume_of_ones_own_is_accepted(setting: str) -> None:
    volume = {"name": "own", "csi": {"driver": "files.example"}}
    mount = {"name": "own", "mountPath": "/nowhere"}
    rendering = render(changes=with_path(setting, NOWHERE, extraVolumes=[volume], extraVolumeMounts=[mount]))

    assert holders(rendering, NOWHERE) == {"gateway", "cpu"}


def test_the_credentials_of_gateways_are_none_that_scorers_could_read() -> None:
    with pytest.raises(RefusedError, match="gateways and scorers alike"):
        render(changes=with_path("tracing.ca", "/etc/preceptor/tls/ca.crt"))


def test_an_audit_log_needs_a_volume_that_can_be_written() -> None:
    mount = {"name": "own", "mountPath": "/nowhere", "readOnly": True}
    volume = {"name": "own", "csi": {"driver": "files.example"}}
    with pytest.raises(RefusedError, match=r"config\.audit\.file is /nowhere/file"):
        render(changes=with_path("audit.file", NOWHERE, extraVolumes=[volume], extraVolumeMounts=[mount]))
    with pytest.raises(RefusedError, match="that a gateway could write to"):
        render(changes=with_path("audit.file", "/etc/preceptor/auth/audit.jsonl"))


def test_tables_of_reference_losses_are_mounted_on_gateways_and_cannot_be_written() -> None:
    directory = "/var/lib/preceptor/tables"
    changes = {**with_path("reference_losses.directory", directory), "referenceLosses": {"existingClaim": "tables"}}
    rendering = render(changes=changes)
    (mount,) = [item for item in rendering.container("gateway")["volumeMounts"] if item["mountPath"] == directory]
    volumes = {item["name"]: item for item in rendering.templates["gateway"]["spec"]["volumes"]}

    assert mount["readOnly"] is True
    assert volumes[mount["name"]]["persistentVolumeClaim"] == {"claimName": "tables", "readOnly": True}
    assert holders(rendering, directory) == {"gateway"}
    assert mount["name"] not in {item["name"] for item in rendering.templates["cpu"]["spec"]["volumes"]}

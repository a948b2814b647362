"""Settings: read once, every wrong one named."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from pydantic import BaseModel

from preceptor_service.config import ConfigError, ServiceConfig, load_config, parse_config
from preceptor_service.config_reference import default_yaml


def written(folder: Path, text: str) -> Path:
    path = folder / "preceptor.yaml"
    path.write_text(text)
    return path


def on(text: str, section: str) -> str:
    """Less the first # of the lines of a section that is off: its name, and what is indented below it."""
    margin = section[: len(section) - len(section.lstrip())]
    block = re.compile(rf"^{margin}#{section.lstrip()}:\n(?:{margin}#  .*\n)+", re.MULTILINE)
    (found,) = block.findall(text)
    return text.replace(found, re.sub(rf"^{margin}#", margin, found, flags=re.MULTILINE))


def test_no_file_gives_the_defaults() -> None:
    assert load_config(None) == ServiceConfig()


def test_the_annotated_defaults_load_into_the_defaults_and_lie_in_deploy(tmp_path: Path, repository: Path) -> None:
    assert load_config(written(tmp_path, default_yaml())) == ServiceConfig()
    assert (repository / "deploy" / "config.yaml").read_text() == default_yaml(), (
        "run: preceptor config > deploy/config.yaml"
    )


def test_every_setting_has_a_meaning() -> None:
    lines = default_yaml().splitlines()
    bare = [
        line
        for before, line in itertools.pairwise(lines)
        if line.strip() and not line.lstrip().startswith("#") and not before.lstrip().startswith("#")
    ]
    assert bare == []


def test_the_annotated_defaults_name_every_setting_of_every_section() -> None:
    def missing(section: type[BaseModel], text: str) -> list[str]:
        found = []
        for name, field in section.model_fields.items():
            line = re.search(rf"^[ #]*{name}:.*\n((?:[ #]+.*\n)*)", text, re.MULTILINE)
            if line is None:
                found.append(f"{section.__name__}.{name}")
                continue
            for kind in (field.annotation, *get_args(field.annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    found += missing(kind, line[1])
        return found

    assert missing(ServiceConfig, default_yaml()) == []


def test_a_section_that_is_off_loads_once_its_marks_are_gone_and_what_is_required_is_filled(tmp_path: Path) -> None:
    text = default_yaml()
    for section in ("tls", "auth", "  oidc"):
        text = on(text, section)
    for required, value in {
        "certificate": "cert.pem", "private_key": "key.pem", "access_file": "access.yaml", "issuer": "https://issuer",
        "audience": "selection",
    }.items():  # fmt: skip
        text, count = re.subn(rf"^( +{required}:)$", rf"\1 {value}", text, flags=re.MULTILINE)
        assert count == 1, required
    text = text.replace("jwks_url: null", "jwks_url: https://issuer/keys")
    loaded = load_config(written(tmp_path, text))
    assert loaded.tls is not None
    assert (loaded.tls.certificate, loaded.tls.client_ca) == (Path("cert.pem"), None)
    assert loaded.auth is not None
    assert loaded.auth.oidc is not None
    assert loaded.auth.oidc.audience == "selection"
    defaults = loaded.model_copy(update={"tls": None, "auth": None})
    assert defaults == ServiceConfig()


def test_a_file_of_some_settings_keeps_the_defaults_of_others_and_flags_win(tmp_path: Path) -> None:
    path = written(tmp_path, "gateway:\n  port: 1234\n  drain_s: 5\nscorer: {replicas: 3}\n")
    config = load_config(path, {"gateway": {"port": 4321}})
    assert (config.gateway.port, config.gateway.drain_s, config.scorer.replicas) == (4321, 5.0, 3)
    assert config.metrics == ServiceConfig().metrics


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gatewey: {}", "gatewey: no such setting"),
        ("gateway: {prot: 1}", "gateway.prot: no such setting"),
        ("gateway: {port: 70000}", r"gateway.port: Input should be less than or equal to 65535 \(is 70000\)"),
        ("gateway: {port: many}", "gateway.port: Input should be a valid integer"),
        ("pool: threads", r"pool: Input should be 'ray' or 'in-process' \(is 'threads'\)"),
        ("weights: {keep_versions: 1}", "weights.keep_versions: Input should be greater than or equal to 2"),
        (
            "{gateway: {deadline_s: 90}, weights: {grace_s: 90}}",
            "config: weights.grace_s 90.0 is not above gateway.deadline_s 90.0",
        ),
        ("weights: {path: 'gs://bucket'}", "weights.path: is gs://bucket; give a directory, or s3://bucket/prefix"),
        ("weights: {path: 's3://key:secret@bucket/x'}", r"(?s)^(?!.*secret).*weights.path: is s3://…@bucket/x; give"),
        (
            "weights: {path: 's3://bucket', max_bytes: 2, cache_bytes: 1}",
            r"weights: .*cache_bytes 1 is below max_bytes 2",
        ),
        (
            "gateway: {window_bytes: 10, max_super_batch_bytes: 11}",
            "gateway: max_super_batch_bytes 11 is above",
        ),
        ("[1, 2]", "holds a list; it must be a mapping"),
        ("a: [\nb: c: d\n", r"^cannot read \S+/preceptor\.yaml:2:5: expected [^\n]*$"),
        ("tls: {certificate: x}", "tls.private_key: is missing; give it, or leave the section out$"),
        ("weights: {path: 's3://b/p'}", "weights.path: is s3://b/p; .* the bucket with 3 to 63 of"),
        ("gateway: {drain_s: .nan}", "gateway.drain_s"),
    ],
)
def test_a_wrong_setting_is_named_with_value_and_limit(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_config(written(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^cannot read .*nowhere\.yaml: No such file or directory$"):
        load_config(tmp_path / "nowhere.yaml")


def test_settings_survive_the_way_to_another_process() -> None:
    config = parse_config({"scorer": {"max_replicas": 4}, "architectures": {"own": "package.module:function"}})
    assert parse_config(config.model_dump(mode="json")) == config
    assert parse_config(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config


def test_a_store_is_a_directory_or_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = parse_config({"weights": {"path": "here"}}).with_absolute_paths()
    assert directory.weights.path == tmp_path / "here"
    assert directory.weights.location == f"{tmp_path}/here"
    bucket = parse_config({"weights": {"path": "s3://bucket/a/prefix/", "cache_path": "cache"}}).with_absolute_paths()
    assert bucket.weights.path == bucket.weights.location == "s3://bucket/a/prefix"
    assert bucket.weights.cache_path == tmp_path / "cache"
    for config in (directory, bucket):
        assert parse_config(config.model_dump(mode="json")) == config
        assert ServiceConfig.model_validate_json(config.model_dump_json()) == config

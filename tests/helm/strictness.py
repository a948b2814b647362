"""Strict validation, as an API server with field validation would: every key known, every value of its type.

Kubernetes' own kinds by the schemas of the package `kubernetes-validate`; RayService, PodMonitor, PrometheusRule and
Certificate by their CRDs, which lie in `../shared/crds` beside the checkout as test data; GRPCRoute by the few of its
fields that the chart uses.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from referencing import Registry, Resource

from tests.prerequisites import lacking

CRDS = Path(__file__).resolve().parents[3] / "shared" / "crds"
_CRD_FILES = {
    "ray.io/v1 RayService": "ray.io_rayservices.yaml",
    "monitoring.coreos.com/v1 PodMonitor": "monitoring.coreos.com_podmonitors.yaml",
    "monitoring.coreos.com/v1 PrometheusRule": "monitoring.coreos.com_prometheusrules.yaml",
    "cert-manager.io/v1 Certificate": "cert-manager.io_certificates.yaml",
}


def faults(manifest: dict[str, Any], kubernetes: str) -> list[str]:
    """Returns what is wrong with an object for Kubernetes such as `1.30.0`; skips where a CRD is absent."""
    kind = f"{manifest['apiVersion']} {manifest['kind']}"
    if kind in _CRD_FILES:
        found = list(_messages(_of_crd(kind), manifest))
        # CRDs say of metadata only that it is an object.
        found += _of_kubernetes({"apiVersion": "v1", "kind": "ConfigMap", "metadata": manifest["metadata"]}, kubernetes)
        for template in _pod_templates(manifest):
            found += _of_kubernetes({"apiVersion": "v1", "kind": "PodTemplate", "template": template}, kubernetes)
        return found
    if kind == "gateway.networking.k8s.io/v1 GRPCRoute":
        return list(_messages(jsonschema.Draft202012Validator(_GRPC_ROUTE), manifest))
    return _of_kubernetes(manifest, kubernetes)


def _messages(validator: Any, manifest: Any) -> Iterator[str]:
    for error in validator.iter_errors(manifest):
        yield f"{'/'.join(map(str, error.absolute_path))}: {error.message[:300]}"


def _of_kubernetes(manifest: dict[str, Any], kubernetes: str) -> list[str]:
    return list(_messages(_of_kind(manifest["kind"], manifest["apiVersion"], kubernetes), manifest))


@functools.cache
def _of_kind(kind: str, api_version: str, kubernetes: str) -> Any:
    group = "-".join(part.split(".")[0] for part in api_version.split("/"))
    folder = _folder(kubernetes)
    schema = json.loads((folder / f"{kind.lower()}-{group}.json").read_text())
    registry: Registry[Any] = Resource.from_contents(schema) @ _definitions(kubernetes)
    return jsonschema.Draft202012Validator(schema, registry=registry)


@functools.cache
def _definitions(kubernetes: str) -> Registry[Any]:
    contents = json.loads((_folder(kubernetes) / "_definitions.json").read_text())
    registry: Registry[Any] = Resource.from_contents(contents) @ Registry()
    return registry


def _folder(kubernetes: str) -> Path:
    package = Path(str(importlib.resources.files("kubernetes_validate")))
    return package / "kubernetes-json-schema" / f"v{kubernetes}-local-strict"


@functools.cache
def _of_crd(kind: str) -> Any:
    path = CRDS / _CRD_FILES[kind]
    if not path.is_file():
        lacking(f"the CRD {path.name} in ../shared/crds beside the checkout, so {kind} was not validated")
    version = kind.split()[0].split("/")[1]
    (schema,) = (
        item["schema"]["openAPIV3Schema"]
        for item in yaml.safe_load(path.read_text())["spec"]["versions"]
        if item["name"] == version
    )
    return jsonschema.Draft202012Validator(_strict(schema, is_root=True))


def _strict(schema: Any, is_root: bool = False) -> Any:
    """Returns a structural schema that refuses the keys which an API server would prune."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {
        key: {name: _strict(item) for name, item in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
    }
    if "properties" in strict and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict.setdefault("additionalProperties", False)
    if strict.pop("nullable", False) and isinstance(strict.get("type"), str):
        strict["type"] = [strict["type"], "null"]
    if is_root:
        strict["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return strict


def _pod_templates(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if key == "template" and isinstance(item, dict):
                yield item
            else:
                yield from _pod_templates(item)
    elif isinstance(value, list):
        for item in value:
            yield from _pod_templates(item)


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": properties}


_TEXT = {"type": "string"}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_GRPC_ROUTE = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion=_TEXT,
    kind=_TEXT,
    metadata={"type": "object"},
    spec=_object(
        ("parentRefs", "rules"),
        parentRefs={
            "type": "array",
            "minItems": 1,
            "items": _object(
                ("name",), group=_TEXT, kind=_TEXT, namespace=_TEXT, name=_TEXT, sectionName=_TEXT, port=_PORT
            ),
        },
        hostnames={"type": "array", "items": _TEXT},
        rules={
            "type": "array",
            "items": _object(
                backendRefs={
                    "type": "array",
                    "items": _object(
                        ("name", "port"), group=_TEXT, kind=_TEXT, namespace=_TEXT, name=_TEXT, port=_PORT
                    ),
                }
            ),
        },
    ),
)

"""What a reference loss depends on, and its digest: losses with different digests are never subtracted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from preceptor_service.models import ArchitectureRegistry
from preceptor_service.models.images import ImageInput
from preceptor_service.tasks import run_columns
from preceptor_service.tasks.task import Columns

_FORMAT = 1


def preprocessing_of(module: nn.Module, columns: Columns) -> dict[str, Any]:
    """Returns what a model reads and what it does to images first, for JSON."""
    described: dict[str, Any] = {"columns": [asdict(column) for column in columns]}
    for part in module.modules():
        if isinstance(part, ImageInput):
            described["image"] = {
                "input_dtype": part.input_dtype,
                "mean": part.means,
                "std": part.stds,
            }
    return described


def loss_identity(
    task: str, model: str, config: Mapping[str, Any], weights_digest: str, registry: ArchitectureRegistry
) -> dict[str, Any]:
    """Returns everything that a reference loss depends on beside the example, for JSON.

    Args:
        task: whose loss it is.
        model: architecture of the reference.
        config: its settings.
        weights_digest: `"sha256:..."` of its safetensors, as a push returns it.
        registry: of architectures.

    Raises:
        InvalidRunError: unknown task, model or setting.
    """
    outline = registry.outline(model, config)
    identity = {
        "format": _FORMAT,
        "weights": weights_digest,
        "task": task,
        "model": model,
        "model_config": {name: plain(value) for name, value in sorted(config.items())},
        "preprocessing": preprocessing_of(outline, run_columns(task, outline)),
    }
    return dict(json.loads(json.dumps(identity)))


def digest_of(identity: Mapping[str, Any]) -> str:
    """Returns `"sha256:..."` of an identity."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def plain(value: Any) -> Any:
    """Returns whole numbers as such: a JSON file may say 1 where a trainer says 1.0."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value

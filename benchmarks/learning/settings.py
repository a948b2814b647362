"""Everything that one training run depends on, and its digest: equal settings are one run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

_FORMAT = 1
"""Raised where the same settings would train otherwise than before."""

Split = Literal["validation", "test"]

COMPOSER = "composer"
"""Selector of a `Selection` that MosaicML's Composer makes, and the package that it needs."""


@dataclass(frozen=True)
class Data:
    """Which data.

    Attributes:
        builder: name in `data.BUILDERS`.
        options: of the builder, for JSON.
    """

    builder: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """An architecture of the service, by its name, and its settings."""

    architecture: str
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Reference:
    """How the reference is trained, and used.

    Attributes:
        model: its architecture.
        trained_on: part of the data: `"clean"`, or `"pool"`, the candidates themselves.
        updates: optimiser steps; the learning rate decays to 0 over them.
        learning_rate: AdamW's, at the start.
        is_table: whether its losses on the pool are computed once, before training; else live.
    """

    model: Model
    trained_on: Literal["clean", "pool"]
    updates: int
    learning_rate: float
    is_table: bool = True


@dataclass(frozen=True)
class Selection:
    """How sub-batches are selected.

    Attributes:
        score: of the run.
        selector: of the run; `COMPOSER`: Composer's rule in the trainer, for which ratio alone counts.
        temperature: of selector softmax.
        ratio: B / b.
        online: the small model that is trained beside the learner and scores; None: the rule needs none.
        online_learning_rate: AdamW's, at the start.
        push_every: updates between two pushes of the online model.
        reference: None: the rule needs none.
        settings: further ones of `RunSpec`.
    """

    score: str
    selector: str
    temperature: float
    ratio: int
    online: Model | None
    online_learning_rate: float
    push_every: int
    reference: Reference | None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """One run.

    Attributes:
        task: as in `RunSpec`.
        data: what it trains and is measured on.
        learner: the model that all is for.
        learning_rate: AdamW's at the start; a half cosine takes it to 0 at the last update.
        updates: optimiser steps, the budget.
        sub_batch_size: b.
        selection: None: uniform, without any service: the control pays for nothing but its updates.
        seed: of data, initial weights, order and draws.
        measured_on: `"test"` for what is reported; `"validation"` where settings are chosen, and no test is read.
        contrast: the contrastive loss of an image_text run: `"softmax"` or `"sigmoid"`; others have none.
    """

    task: str
    data: Data
    learner: Model
    learning_rate: float
    updates: int
    sub_batch_size: int
    selection: Selection | None
    seed: int
    measured_on: Split
    contrast: str = "softmax"


def plain(settings: Any) -> dict[str, Any]:
    """Returns settings as JSON has them."""
    return dict(json.loads(json.dumps(asdict(settings))))


def digest(settings: Any) -> str:
    """Returns what tells settings apart, 16 hexadecimal digits."""
    text = json.dumps([_FORMAT, type(settings).__name__, plain(settings)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

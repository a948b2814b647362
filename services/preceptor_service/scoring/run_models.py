"""Which models a run scores with: from its spec and its committed weights to `ScoringModels`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from preceptor.errors import PreceptorError
from preceptor.runs import ConfigValue, RunSpec
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.run_store import RunStore
from preceptor_service.scores import ScoreRule
from preceptor_service.scoring.pool import Measure, ModelRef, ScoringModels
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import ROLES, Role, WeightsVersion

if TYPE_CHECKING:
    from preceptor_service.scoring.engine import ScoringEngine

logger = logging.getLogger(__name__)


def architecture_of(spec: RunSpec, role: Role) -> tuple[str, Mapping[str, ConfigValue]]:
    """Returns name and settings of the architecture that weights of `role` must fit."""
    if role != "learner" and spec.reference_model is not None:
        return spec.reference_model, spec.reference_model_config
    return spec.model, spec.model_config


def scoring_models(
    spec: RunSpec,
    rule: ScoreRule,
    learner: WeightsVersion | None,
    reference: WeightsVersion | None,
    reference_fold_1: WeightsVersion | None = None,
) -> ScoringModels:
    """Returns what scorers need for `rule`, the run's, as far as it is there.

    A reference that is trained beside a learner copy belongs to its version.
    """
    if learner is not None and learner.reference_digest is not None:
        reference = replace(learner, digest=learner.reference_digest, total_bytes=learner.reference_bytes or 0)
    return ScoringModels(
        run_id=spec.run_id,
        task=spec.task,
        learner=_ref(spec, "learner", learner) if rule.needs_learner else None,
        reference=_ref(spec, "reference", reference) if rule.needs_reference else None,
        learner_measures=_learner_measures(rule),
        reference_fold_1=_ref(spec, "reference_fold_1", reference_fold_1) if rule.needs_reference else None,
    )


def committed_models(run_store: RunStore, weight_store: WeightStore, methods: MethodRegistry) -> list[ScoringModels]:
    """Returns the models of every run that has weights, the latest commit first.

    What a new scorer loads before it reports healthy. Runs whose files are damaged, or whose score rule the operator
    took away, are left out.
    """
    found = []
    for run_id in run_store.list():
        try:
            spec = run_store.read(run_id).spec
            rule = methods.rule(spec.score)
            roles = ROLES if spec.cross_reference else ROLES[:2]
            heads = [weight_store.head(run_id, role) for role in roles]
        except PreceptorError:
            continue
        committed = max((version.commit_time_s for version in heads if version), default=None)
        if committed is not None:
            found.append((committed, scoring_models(spec, rule, *heads)))
    return [models for _, models in sorted(found, key=lambda pair: -pair[0])]


def load_committed(
    engine: ScoringEngine, run_store: RunStore, weight_store: WeightStore, methods: MethodRegistry, limit_bytes: int
) -> None:
    """Loads the models of `committed_models` into `engine`, as many as fit into `limit_bytes`. Blocking.

    What cannot be loaded is logged and left out; it fails when it is asked for.
    """
    held = 0
    for models in committed_models(run_store, weight_store, methods):
        held += sum(ref.total_bytes for ref in (models.learner, models.reference, models.reference_fold_1) if ref)
        if held > limit_bytes:
            return
        try:
            engine.load(models)
        except PreceptorError:
            logger.exception("run %s: committed weights cannot be loaded", models.run_id)


def _learner_measures(rule: ScoreRule) -> tuple[Measure, ...]:
    named: dict[str, Measure] = {"learner_losses": "loss", "learner_gradient_norms": "gradient_norm"}
    return tuple(measure for name, measure in named.items() if name in rule.needs)


def _ref(spec: RunSpec, role: Role, version: WeightsVersion | None) -> ModelRef | None:
    if version is None:
        return None
    architecture, config = architecture_of(spec, role)
    return ModelRef(architecture, json.dumps(dict(config), sort_keys=True), version.digest, version.total_bytes)

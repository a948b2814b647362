"""Whether a run uses a reference as it was trained: what weights alone do not say. Called by `RunRegistry`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from preceptor.errors import InternalError, InvalidRunError, InvalidWeightsError, NotFoundError
from preceptor.quoting import brief, quoted, shortened
from preceptor.runs import RunSpec, config_from_proto
from preceptor.v1 import weights_pb2
from preceptor_service.loss_identity import plain, preprocessing_of
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.run_store import RunStore
from preceptor_service.scoring.run_models import architecture_of
from preceptor_service.tasks import run_columns
from preceptor_service.weight_store import WeightStore
from preceptor_service.weight_versions import ROLES, Role

_OF_IMAGES = ("input_dtype", "mean", "std")


@dataclass(frozen=True)
class Usage:
    """What a reference loss depends on beside example and weights: name → value, e.g. `"model_config.width"` → 8."""

    values: Mapping[str, Any]

    def differences(self, other: Usage) -> list[str]:
        """Returns the names whose values differ."""
        names = sorted({*self.values, *other.values})
        return [name for name in names if self.values.get(name) != other.values.get(name)]


def usage_by(spec: RunSpec, role: Role, registry: ArchitectureRegistry) -> Usage:
    """Returns how a run uses weights of `role`.

    Raises:
        InvalidRunError: unknown task, model or setting.
    """
    model, config = architecture_of(spec, role)
    outline = registry.outline(model, config)
    described = preprocessing_of(outline, run_columns(spec.task, outline))
    columns = [(column["name"], column["element_type"], list(column["shape"])) for column in described["columns"]]
    return _usage(spec.task, model, registry.settings(model, config), columns, described.get("image"))


def usage_on(card: weights_pb2.ReferenceCard, registry: ArchitectureRegistry) -> Usage:
    """Returns how a reference was trained, as its card says.

    Raises:
        InvalidWeightsError: a setting is empty, or the architecture is not known here.
    """
    try:
        settings = registry.settings(card.model.architecture, config_from_proto(card.model))
    except (ValueError, InvalidRunError) as error:
        raise InvalidWeightsError(f"the reference's card cannot be used: {brief(error)}") from error
    columns = [(column.name, column.element_type, list(column.shape)) for column in card.columns]
    image = {"input_dtype": card.image.input_dtype, "mean": list(card.image.mean), "std": list(card.image.std)}
    described = image if card.HasField("image") else None
    return _usage(card.task, card.model.architecture, settings, columns, described)


def check_card(usage: Usage, card: weights_pb2.ReferenceCard, run_id: str, registry: ArchitectureRegistry) -> None:
    """Checks that a run uses a reference, by `usage`, as its card says that it was trained.

    Raises:
        InvalidWeightsError: naming the first difference.
    """
    trained = usage_on(card, registry)
    for name in usage.differences(trained):
        there, here = (quoted(side.values.get(name)) for side in (trained, usage))
        raise InvalidWeightsError(
            f"the reference's card says {shortened(name)} {there}, and run {run_id!r} uses its reference with {here}; "
            "create a run with task, reference_model and reference_model_config as on the card"
        )


def check_adopted(
    spec: RunSpec, digest: str, run_store: RunStore, weight_store: WeightStore, registry: ArchitectureRegistry
) -> None:
    """Checks that a run uses a reference of that digest as some run does that holds it. Blocking.

    Where no run holds it, as for weights that are about to be removed, there is nothing to compare.

    Raises:
        InvalidWeightsError: every run that holds it uses it otherwise.
        UnavailableError: an object store cannot be reached.
    """
    here, names = usage_by(spec, "reference", registry), None
    for usage in _usages(digest, run_store, weight_store, registry):
        names = here.differences(usage)
        if not names:
            return
    if names:
        # Not their values: the runs may be somebody else's.
        raise InvalidWeightsError(
            f"reference {digest} is used otherwise by every run that holds it: {', '.join(names)} differ; a loss with "
            "another preprocessing or other settings is another loss. Give what it was trained with, or push it, with "
            "its card"
        )


def _usages(
    digest: str, run_store: RunStore, weight_store: WeightStore, registry: ArchitectureRegistry
) -> Iterator[Usage]:
    for run_id in run_store.list():
        try:
            roles = _roles(digest, run_id, weight_store)
            yield from (usage_by(run_store.read(run_id).spec, role, registry) for role in roles)
        except (NotFoundError, InternalError, InvalidRunError):
            continue  # deleted meanwhile, damaged, or of an architecture that is gone: it says nothing


def _roles(digest: str, run_id: str, weight_store: WeightStore) -> set[Role]:
    """Returns as what a run holds these weights."""
    roles: set[Role] = set()
    for role in ROLES:
        for version in weight_store.versions(run_id, role):
            if version.digest == digest:
                roles.add(role)
            if version.reference_digest == digest:
                roles.add("reference")
    return roles


def _usage(
    task: str,
    model: str,
    settings: Mapping[str, Any],
    columns: list[tuple[str, str, list[int]]],
    image: Mapping[str, Any] | None,
) -> Usage:
    # What is done to images stands under `preprocessing` in full: a mean for all channels, and one for each, are one.
    own = {name: value for name, value in settings.items() if image is None or name not in _OF_IMAGES}
    return Usage(
        {
            "task": task,
            "model": model,
            **{f"model_config.{name}": plain(value) for name, value in own.items()},
            "preprocessing.columns": columns,
            **{f"preprocessing.{name}": plain(image[name]) for name in _OF_IMAGES if image is not None},
        }
    )

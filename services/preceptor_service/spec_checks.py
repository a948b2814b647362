"""Which settings a run may have: every bound of a `RunSpec` that needs no model to be built."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from preceptor.co_training import CoTraining
from preceptor.errors import InvalidRunError
from preceptor.quoting import quoted
from preceptor.runs import ConfigValue, MemoryBank, RunSpec
from preceptor_service.config import MemoryBankConfig
from preceptor_service.memory_bank.rows import ROW_BYTES
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.tasks import TASKS, GradientTask

RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_TEMPERATURE = (1e-6, 1e6)
_MAX_PRIORITY_EXPONENT = 1e3
_DEADLINE_S = (1e-3, 3600.0)
_FLOPS = (1.0, 1e18)
_MAX_TRAINING_SHARE = 1e6
_SAVINGS = (-10.0, 0.99)
_LEARNING_RATE = (1e-12, 1e3)
_BELOW_1 = 1 - 1e-9
_MAX_BLOCK = 10_000
_INT64_MAX = 2**63 - 1
_MAX_CONTROL_FRACTION = 0.99
_MAX_SETTINGS = 64
_MAX_LIST = 64
_MAX_TEXT = 256


def check_spec(spec: RunSpec) -> None:
    """Checks ranges and sizes, and the name of the task.

    Raises:
        InvalidRunError: naming the setting, its value and the limit.
    """
    if not RUN_ID.fullmatch(spec.run_id):
        raise InvalidRunError(f"run_id is {quoted(spec.run_id)}; it must match {RUN_ID.pattern}")
    if spec.task not in TASKS:
        raise InvalidRunError(f"task is {quoted(spec.task)}; choose one of {sorted(TASKS)}")
    for config in (spec.model_config, spec.reference_model_config):
        _check_model_config(config)
    _check_range("temperature", spec.temperature, *_TEMPERATURE)
    _check_range("priority_exponent", spec.priority_exponent, 0, _MAX_PRIORITY_EXPONENT)
    _check_range("importance_exponent", spec.importance_exponent, 0, 1)
    _check_range("seed", spec.seed, 0, _INT64_MAX)
    if spec.max_staleness_steps is not None:
        _check_range("max_staleness_steps", spec.max_staleness_steps, 0, _INT64_MAX)
    if spec.deadline_s is not None:
        _check_range("deadline_s", spec.deadline_s, *_DEADLINE_S)
    if spec.learner_flops is not None:
        _check_range("learner_flops", spec.learner_flops, *_FLOPS)
    if spec.reference_training_share is not None:
        _check_range("reference_training_share", spec.reference_training_share, 0, _MAX_TRAINING_SHARE)
    if spec.expected_savings is not None:
        _check_range("expected_savings", spec.expected_savings, *_SAVINGS)
    if spec.reference_losses is not None and not RUN_ID.fullmatch(spec.reference_losses):
        raise InvalidRunError(f"reference_losses is {quoted(spec.reference_losses)}; it must match {RUN_ID.pattern}")
    if spec.memory_bank is not None:
        _check_bank(spec.memory_bank)
    _check_schedule(spec)
    _check_range("control_fraction", spec.control_fraction, 0, _MAX_CONTROL_FRACTION)
    _check_range("control_block_steps", spec.control_block_steps, 1, _INT64_MAX)
    if spec.co_training is not None:
        _check_co_training(spec, spec.co_training)


def check_method(spec: RunSpec, methods: MethodRegistry) -> None:
    """Checks that the service has the run's score rule and selector, and that the task gives what the rule needs.

    Raises:
        InvalidRunError: naming the setting, its value and what to choose from.
    """
    methods.selector(spec.selector)
    if spec.cross_reference and not methods.rule(spec.score).needs_reference:
        raise InvalidRunError(
            f"cross_reference is set, and score {spec.score!r} reads no reference; choose another, or leave it off"
        )
    if spec.cross_reference and spec.reference_digest is not None:
        raise InvalidRunError(
            f"cross_reference is set together with reference_digest {quoted(spec.reference_digest)}, which is one "
            "reference; push both, each with its fold"
        )
    if spec.reference_losses is not None and (spec.cross_reference or not methods.rule(spec.score).needs_reference):
        why = "cross_reference, which has two references" if spec.cross_reference else f"score {spec.score!r}"
        raise InvalidRunError(
            f"reference_losses is {spec.reference_losses!r} together with {why}; a table has the losses of "
            "one reference that the score reads"
        )
    if spec.co_training is not None and not methods.rule(spec.score).needs_learner:
        raise InvalidRunError(
            f"co_training is set, and score {spec.score!r} reads no learner; choose another, or leave it off"
        )
    if spec.co_training is not None and spec.co_training.reference_examples:
        _check_online_reference(spec, methods)
    if spec.control_fraction > 0 and spec.score == "uniform":
        raise InvalidRunError(
            f"control_fraction is {spec.control_fraction:g} and score 'uniform': there is nothing to compare with; "
            "leave it at 0, or choose another score"
        )
    needs_gradient = "learner_gradient_norms" in methods.rule(spec.score).needs
    if needs_gradient and not isinstance(TASKS[spec.task], GradientTask):
        able = sorted(name for name, task in TASKS.items() if isinstance(task, GradientTask))
        raise InvalidRunError(
            f"score is {spec.score!r}, which needs the gradient of a softmax, and task {spec.task!r} has none; "
            f"choose another score, or one of the tasks {able}"
        )


def check_room(bank: MemoryBank, settings: MemoryBankConfig) -> None:
    """Checks that the service has room for a bank of a new run.

    Raises:
        InvalidRunError: with the largest capacity.
    """
    largest = settings.max_bytes_per_run // ROW_BYTES
    if bank.capacity > largest:
        raise InvalidRunError(
            f"memory_bank.capacity is {bank.capacity}, up to {bank.capacity * ROW_BYTES} bytes, and "
            f"memory_bank.max_bytes_per_run of the service is {settings.max_bytes_per_run}; choose at most {largest}"
        )


def check_pinned_weights_last(spec: RunSpec, grace_s: float) -> None:
    """Checks that weights that expire outlive the super-batches of a new run that are pinned to them.

    Raises:
        InvalidRunError: with what `deadline_s` has to be below.
    """
    if spec.deadline_s is not None and spec.deadline_s >= grace_s:
        raise InvalidRunError(
            f"deadline_s is {spec.deadline_s:g}, and the service keeps expired weights for {grace_s:g} s "
            "(weights.grace_s); choose less, or raise that"
        )


def _check_bank(bank: MemoryBank) -> None:
    _check_range("memory_bank.capacity", bank.capacity, 1, _INT64_MAX)
    if bank.max_times_sampled is not None:
        _check_range("memory_bank.max_times_sampled", bank.max_times_sampled, 1, _INT64_MAX)
    if bank.max_staleness_steps is not None:
        _check_range("memory_bank.max_staleness_steps", bank.max_staleness_steps, 0, _INT64_MAX)


def _check_schedule(spec: RunSpec) -> None:
    _check_range("select_from_step", spec.select_from_step, 0, _INT64_MAX)
    _check_range("warm_up_steps", spec.warm_up_steps, 0, _INT64_MAX)
    _check_range("uniform_share", spec.uniform_share, 0, 1)
    until = spec.select_until_step
    if until is not None and until <= spec.select_from_step:
        raise InvalidRunError(
            f"select_until_step is {until} and select_from_step {spec.select_from_step}: selection would end before it "
            "starts; choose a later end, or score 'uniform' for a run that never selects"
        )


def _check_co_training(spec: RunSpec, co_training: CoTraining) -> None:
    if spec.memory_bank is not None:
        raise InvalidRunError(
            "memory_bank is set together with co_training, which trains on what select answers and would never learn "
            "what is sampled from a bank; leave one of them off, and push weights to a run with a bank"
        )

    def check(name: str, low: float, high: float) -> None:
        _check_range(f"co_training.{name}", getattr(co_training, name), low, high)

    check("learning_rate", *_LEARNING_RATE)
    check("weight_decay", 0, _LEARNING_RATE[1])
    for name in ("beta1", "beta2", "momentum"):
        check(name, 0, _BELOW_1)
    check("publish_every", 1, _MAX_BLOCK)
    check("ranks", 1, _MAX_BLOCK)
    if co_training.publish_every * co_training.ranks > _MAX_BLOCK:
        raise InvalidRunError(
            f"co_training.publish_every is {co_training.publish_every} and ranks {co_training.ranks}; a block has at "
            f"most {_MAX_BLOCK} sub-batches"
        )
    for name in ("first_step", "warm_up_steps", "seed", "lag", "reference_examples"):
        check(name, 0, _INT64_MAX)
    if co_training.total_steps is not None:
        check("total_steps", 1, _INT64_MAX)
        if co_training.warm_up_steps >= co_training.total_steps:
            raise InvalidRunError(
                f"co_training.warm_up_steps is {co_training.warm_up_steps} and total_steps {co_training.total_steps}: "
                "training would end before it warmed up; choose fewer, or more in total"
            )
    if spec.max_staleness_steps is not None:
        raise InvalidRunError(
            f"max_staleness_steps is {spec.max_staleness_steps} together with co_training, whose lag and publish_every "
            "say how old the learner copy is; leave it off"
        )


def _check_online_reference(spec: RunSpec, methods: MethodRegistry) -> None:
    others = {
        f"score {spec.score!r}, which reads no reference": not methods.rule(spec.score).needs_reference,
        "reference_digest": spec.reference_digest is not None,
        "reference_losses": spec.reference_losses is not None,
        "cross_reference": spec.cross_reference,
        "reference_training_share": spec.reference_training_share is not None,
    }
    for other in (name for name, is_set in others.items() if is_set):
        raise InvalidRunError(
            f"co_training.reference_examples is set together with {other}; the reference that is trained in the "
            "service is the run's only one, so leave one of them off"
        )


def _check_model_config(config: Mapping[str, ConfigValue]) -> None:
    if len(config) > _MAX_SETTINGS:
        raise InvalidRunError(f"a model config has {len(config)} settings; at most {_MAX_SETTINGS} can be given")
    for name, value in config.items():
        limit = _MAX_TEXT if isinstance(value, str) else _MAX_LIST
        if isinstance(value, str | Sequence) and len(value) > limit:
            unit = "characters" if isinstance(value, str) else "values"
            raise InvalidRunError(
                f"model config setting {quoted(name)} has {len(value)} {unit}; at most {limit} can be given"
            )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidRunError(f"{name} is {value}; choose from {low:g} to {high:g}")

"""`RunSpec`: what a trainer wants selected, and how; its translation to and from the wire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from preceptor.co_training import CoTraining, co_training_from_proto, co_training_to_proto
from preceptor.quoting import quoted
from preceptor.v1 import run_pb2

ConfigValue = bool | int | float | str | Sequence[int] | Sequence[float]
"""One setting of an architecture."""

P = TypeVar("P")
V = TypeVar("V")

StalePolicy = Literal["wait", "serve", "uniform"]
DeadlinePolicy = Literal["raise", "uniform", "wait"]

_STALE_POLICIES: dict[StalePolicy, run_pb2.StalePolicy.ValueType] = {
    "wait": run_pb2.STALE_POLICY_WAIT,
    "serve": run_pb2.STALE_POLICY_SERVE,
    "uniform": run_pb2.STALE_POLICY_UNIFORM,
}
_DEADLINE_POLICIES: dict[DeadlinePolicy, run_pb2.DeadlinePolicy.ValueType] = {
    "raise": run_pb2.DEADLINE_POLICY_RAISE,
    "uniform": run_pb2.DEADLINE_POLICY_UNIFORM,
    "wait": run_pb2.DEADLINE_POLICY_WAIT,
}


@dataclass(frozen=True)
class MemoryBank:
    """A memory bank of scored examples, by `example_id`, for `Run.remember` and `Run.sample`; see docs/memory-bank.md.

    Attributes:
        capacity: most examples; beyond it the oldest scores leave. 1 or above, up to what the service has room for.
        max_times_sampled: how often an example is sampled before it leaves; 1 or above, None: no bound.
        max_staleness_steps: how many steps the learner copy behind a score may lag behind the step that samples; older
            scores stay, and are not sampled until they are remembered anew. 0 or above, None: no bound.

    Source: prioritized replay, Schaul et al., arXiv 1511.05952.
    """

    capacity: int
    max_times_sampled: int | None = 1
    max_staleness_steps: int | None = None


@dataclass(frozen=True)
class RunSpec:
    """Settings of one run, fixed for its life. The service checks them when the run is created.

    Attributes:
        run_id: name, `[a-z0-9][a-z0-9-]{0,62}`.
        task: what the examples are and which loss scores them: `"classification"`, `"image_text"` or `"causal_lm"`.
        model: architecture of the learner copy, by its name in the service, e.g. `"small_cnn"`.
        model_config: the architecture's settings.
        reference_model: architecture of the reference; default: the same as `model`.
        reference_model_config: its settings; only together with `reference_model`.
        reference_digest: digest of a reference that the service already holds, as
            `Run.push_reference` returned it; default: none, push one.
        score: `"learnability"`, `"hard_learner"`, `"easy_reference"`, `"gradient_norm"` (not for task image_text),
            `"uniform"`, or one that the operator added.
        selector: `"softmax"`, `"top_k"`, `"proportional"`, `"uniform"`, or one that the operator added.
        temperature: of selector softmax: scores are divided by it; above 0.
        seed: of the run's random streams; 0 or above.
        max_staleness_steps: how many steps the learner copy may lag behind; None: no bound.
        on_stale: beyond that bound `"wait"` for a push until the deadline, `"serve"` all the same,
            or select `"uniform"`ly and say so (`Selection.is_fallback`).
        deadline_s: seconds from the last byte of a super-batch to its answer; None: the service's
            configured limit.
        on_deadline: at the deadline `"raise"` `DeadlineExceededError`, select `"uniform"`ly, or `"wait"`: ask again,
            with the weights of then, until the client's `timeout_s`. Uniformly draws the client itself where it hears
            of no gateway for `deadline_s` and 2 s more (in the steps after that one for `deadline_s`), or has no answer
            within `timeout_s`; not for a co-trained run, which needs every step.
        learner_flops: floating-point operations of one forward pass of your learner on one example, for the cost
            meter (`RunStatus.cost`); `preceptor.torch.forward_flops` counts them. None: `model` is the learner itself.
        expected_savings: share of learner updates that you expect to save, below 1; None: the paper's 0.46.
        reference_training_share: operations that training the reference took beforehand, over those of the uniform
            run's learner updates, 3 · learner_flops · b each, for the cost meter; 0 where it was there already. None:
            as many examples as that run, as in the paper's figure; of two references half of them each.
        select_from_step: steps before it are drawn uniformly and not scored; 0 or above.
        select_until_step: steps from it on are drawn uniformly and not scored; above `select_from_step`; None: no end.
        warm_up_steps: steps over which the share of the sub-batch that is drawn by score grows from 0, at
            `select_from_step`, to its full size, linearly.
        uniform_share: of every sub-batch, drawn uniformly from what the selector left; from 0 to 1.
        priority_exponent: α of selector proportional, which draws in proportion to score^α; 0 or above.
        importance_exponent: β of its importance weights (`Selection.weights`); from 0, no correction, to 1.
        cross_reference: two references, each trained on one half of the data, the fold that `preceptor.folds.folds_of`
            says; every candidate is scored by the one that did not see it, so super-batches need `example_id`.
        reference_losses: name of a table of reference losses that the operator built and put there; candidates whose
            `example_id` is in it are not scored by the reference, so super-batches need `example_id`. Push the
            reference that the table was made with. None: every candidate is scored live.
        ledger: whether the service keeps what every answered super-batch was drawn from, and every operation of the
            memory bank, for `Run.ledger`; changes nothing of what is selected.
        memory_bank: keeps scored examples, for `Run.remember` and `Run.sample`; changes nothing of what `Run.select`
            answers. None: there is none.
        co_training: the service trains the learner copy itself, on the sub-batches that it hands out; then ask for
            sub-batches, and push no weights but the reference's. None: push them.
        control_fraction: share of steps that are held back as a control arm, from 0 to below 1: drawn uniformly and
            not scored (`Selection.is_control`, `Sampled.is_control`), so that a report can compare; not with score
            uniform.
        control_block_steps: steps that are held back together; report metrics at its multiples
            (`Run.report_metrics`), so that what one gains over a block can be put down to it. 1 or above.

    Source: Evans et al., arXiv 2312.05328, Algorithm 1. The temperature is ours; 1 is the paper's.
    """

    run_id: str
    model: str
    model_config: Mapping[str, ConfigValue] = field(default_factory=dict)
    task: str = "classification"
    reference_model: str | None = None
    reference_model_config: Mapping[str, ConfigValue] = field(default_factory=dict)
    reference_digest: str | None = None
    score: str = "learnability"
    selector: str = "softmax"
    temperature: float = 1.0
    seed: int = 0
    max_staleness_steps: int | None = None
    on_stale: StalePolicy = "uniform"
    deadline_s: float | None = None
    on_deadline: DeadlinePolicy = "raise"
    learner_flops: float | None = None
    expected_savings: float | None = None
    reference_training_share: float | None = None
    select_from_step: int = 0
    select_until_step: int | None = None
    warm_up_steps: int = 0
    uniform_share: float = 0.0
    priority_exponent: float = 1.0
    importance_exponent: float = 1.0
    cross_reference: bool = False
    reference_losses: str | None = None
    ledger: bool = False
    memory_bank: MemoryBank | None = None
    co_training: CoTraining | None = None
    control_fraction: float = 0.0
    control_block_steps: int = 1

    def __post_init__(self) -> None:
        if self.reference_model is None and self.reference_model_config:
            raise ValueError("reference_model_config is given without reference_model; name the architecture too")
        if self.on_stale not in _STALE_POLICIES:
            raise ValueError(f"on_stale is {self.on_stale!r}; choose one of {sorted(_STALE_POLICIES)}")
        if self.on_deadline not in _DEADLINE_POLICIES:
            raise ValueError(f"on_deadline is {self.on_deadline!r}; choose one of {sorted(_DEADLINE_POLICIES)}")


def spec_to_proto(spec: RunSpec) -> run_pb2.RunSpec:
    """Returns the wire form of `spec`.

    Raises:
        TypeError: a value of a model config has a type that the contract does not know.
    """
    message = run_pb2.RunSpec(
        run_id=spec.run_id,
        task=spec.task,
        model=model_to_proto(spec.model, spec.model_config),
        reference_digest=spec.reference_digest,
        score=spec.score,
        selector=spec.selector,
        temperature=spec.temperature,
        seed=spec.seed,
        max_staleness_steps=spec.max_staleness_steps,
        on_stale=_STALE_POLICIES[spec.on_stale],
        on_deadline=_DEADLINE_POLICIES[spec.on_deadline],
        learner_flops=spec.learner_flops,
        expected_savings=spec.expected_savings,
        reference_training_share=spec.reference_training_share,
        select_from_step=spec.select_from_step,
        select_until_step=spec.select_until_step,
        warm_up_steps=spec.warm_up_steps,
        uniform_share=spec.uniform_share,
        priority_exponent=spec.priority_exponent,
        importance_exponent=spec.importance_exponent,
        cross_reference=spec.cross_reference,
        reference_losses=spec.reference_losses,
        ledger=spec.ledger,
        control_fraction=spec.control_fraction,
        control_block_steps=spec.control_block_steps,
    )
    if spec.reference_model is not None:
        message.reference_model.CopyFrom(model_to_proto(spec.reference_model, spec.reference_model_config))
    if spec.memory_bank is not None:
        message.memory_bank.CopyFrom(run_pb2.MemoryBank(**vars(spec.memory_bank)))
    if spec.co_training is not None:
        message.co_training.CopyFrom(co_training_to_proto(spec.co_training))
    if spec.deadline_s is not None:
        message.deadline.FromNanoseconds(round(spec.deadline_s * 1e9))
    return message


def spec_from_proto(message: run_pb2.RunSpec) -> RunSpec:
    """Returns the spec that `message` carries.

    Raises:
        ValueError: a required policy is not set, a model setting is empty, or co-training lacks its optimiser.
    """
    has_reference = message.HasField("reference_model")
    return RunSpec(
        run_id=message.run_id,
        task=message.task,
        model=message.model.architecture,
        model_config=config_from_proto(message.model),
        reference_model=message.reference_model.architecture if has_reference else None,
        reference_model_config=config_from_proto(message.reference_model) if has_reference else {},
        reference_digest=message.reference_digest if message.HasField("reference_digest") else None,
        score=message.score,
        selector=message.selector,
        temperature=message.temperature,
        seed=message.seed,
        max_staleness_steps=message.max_staleness_steps if message.HasField("max_staleness_steps") else None,
        on_stale=_stale_policy(message),
        deadline_s=seconds(message.deadline) if message.HasField("deadline") else None,
        on_deadline=_policy("on_deadline", _DEADLINE_POLICIES, message.on_deadline),
        learner_flops=message.learner_flops if message.HasField("learner_flops") else None,
        expected_savings=message.expected_savings if message.HasField("expected_savings") else None,
        reference_training_share=(
            message.reference_training_share if message.HasField("reference_training_share") else None
        ),
        select_from_step=message.select_from_step,
        select_until_step=message.select_until_step if message.HasField("select_until_step") else None,
        warm_up_steps=message.warm_up_steps,
        uniform_share=message.uniform_share,
        priority_exponent=message.priority_exponent if message.HasField("priority_exponent") else 1.0,
        importance_exponent=message.importance_exponent if message.HasField("importance_exponent") else 1.0,
        cross_reference=message.cross_reference,
        reference_losses=message.reference_losses if message.HasField("reference_losses") else None,
        ledger=message.ledger,
        memory_bank=_bank_from_proto(message.memory_bank) if message.HasField("memory_bank") else None,
        co_training=co_training_from_proto(message.co_training) if message.HasField("co_training") else None,
        control_fraction=message.control_fraction,
        control_block_steps=message.control_block_steps if message.HasField("control_block_steps") else 1,
    )


def seconds(time: Duration | Timestamp) -> float:
    """Returns a wire duration in seconds, or a moment in seconds since the epoch, whatever its fields hold."""
    return time.seconds + time.nanos / 1e9


def _bank_from_proto(message: run_pb2.MemoryBank) -> MemoryBank:
    return MemoryBank(
        capacity=message.capacity,
        max_times_sampled=message.max_times_sampled if message.HasField("max_times_sampled") else None,
        max_staleness_steps=message.max_staleness_steps if message.HasField("max_staleness_steps") else None,
    )


def _stale_policy(message: run_pb2.RunSpec) -> StalePolicy:
    if not message.HasField("max_staleness_steps") and message.on_stale == run_pb2.STALE_POLICY_UNSPECIFIED:
        return RunSpec.on_stale  # never looked at without a bound
    return _policy("on_stale", _STALE_POLICIES, message.on_stale)


def _policy(name: str, policies: Mapping[P, V], value: V) -> P:
    for policy, known in policies.items():
        if known == value:
            return policy
    raise ValueError(f"{name} is {value}; choose one of {sorted(map(str, policies))}")


def model_to_proto(architecture: str, config: Mapping[str, ConfigValue]) -> run_pb2.ModelSpec:
    """Returns an architecture with its settings for the wire.

    Raises:
        TypeError: a setting is of a type that has no counterpart there.
    """
    return run_pb2.ModelSpec(
        architecture=architecture, config={name: _value_to_proto(name, value) for name, value in config.items()}
    )


def _value_to_proto(name: str, value: ConfigValue) -> run_pb2.ConfigValue:
    match value:
        case bool():
            return run_pb2.ConfigValue(bool_value=value)
        case int():
            return run_pb2.ConfigValue(int_value=value)
        case float():
            return run_pb2.ConfigValue(float_value=value)
        case str():
            return run_pb2.ConfigValue(string_value=value)
        case list() | tuple() if all(type(item) is int for item in value):
            return run_pb2.ConfigValue(int_list=run_pb2.IntList(values=value))
        case list() | tuple() if all(type(item) in (int, float) for item in value):
            return run_pb2.ConfigValue(float_list=run_pb2.FloatList(values=value))
    raise TypeError(
        f"model_config[{name!r}] is a {type(value).__name__}; give a bool, int, float, str, or a list of int or float"
    )


def config_from_proto(model: run_pb2.ModelSpec) -> dict[str, ConfigValue]:
    """Returns the settings of an architecture.

    Raises:
        ValueError: one of them is empty.
    """
    return {name: _value_from_proto(name, value) for name, value in sorted(model.config.items())}


def _value_from_proto(name: str, value: run_pb2.ConfigValue) -> ConfigValue:
    match value.WhichOneof("kind"):
        case "int_list":
            return tuple(value.int_list.values)
        case "float_list":
            return tuple(value.float_list.values)
        case None:
            raise ValueError(f"model config setting {quoted(name)} is empty")
        case kind:
            scalar: bool | int | float | str = getattr(value, kind)
            return scalar

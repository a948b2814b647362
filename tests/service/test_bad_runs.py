"""Runs that cannot be made or do not exist: what is wrong, the value, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from preceptor import CoTraining, MemoryBank, Run, RunSpec, SelectionClient
from preceptor.errors import InvalidRunError, PreceptorError, RunExistsError, RunNotFoundError, WeightsNotFoundError
from preceptor.runs import spec_to_proto
from preceptor.v1 import run_pb2, selection_pb2, weights_pb2
from tests.service import digits
from tests.service.conftest import Control
from tests.service.raw import RawChannel, push_messages, select_open


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


_INVALID: dict[str, tuple[dict[str, Any], str]] = {
    "empty id": ({"run_id": ""}, "run_id is ''; it must match"),
    "capitals in the id": ({"run_id": "Run"}, "run_id is 'Run'; it must match"),
    "a path as id": ({"run_id": "../../etc"}, "run_id is '../../etc'; it must match"),
    "a line break after the id": ({"run_id": "run\n"}, r"run_id is 'run\\n'; it must match"),
    "a leading dash": ({"run_id": "-run"}, "run_id is '-run'; it must match"),
    "64 characters": ({"run_id": "a" * 64}, "it must match"),
    "unknown task": ({"task": "poetry"}, "task is 'poetry'; choose one of .*'classification'"),
    "unknown score": ({"score": "luck"}, "score is 'luck'; choose one of .*'learnability'"),
    "a gradient norm of pairs": (
        {"task": "image_text", "score": "gradient_norm"},
        r"score is 'gradient_norm', which needs the gradient of a softmax, and task 'image_text' has none; .*"
        r"\['causal_lm', 'classification'\]",
    ),
    "unknown selector": ({"selector": "dice"}, r"selector is 'dice'; choose one of .*'softmax', 'top_k', 'uniform'\]"),
    "unknown architecture": ({"model": "gpt-9"}, "model is 'gpt-9'; this service knows .*'small_cnn'"),
    "code as architecture": ({"model": "os:system"}, "model is 'os:system'; this service knows"),
    "unknown setting": (
        {"model_config": {**digits.MODEL, "depth": 3}},
        r"model 'small_cnn': no setting 'depth'; it takes \['in_channels'",
    ),
    "missing setting": ({"model_config": {"width": 2}}, "in_channels is missing; give a value"),
    "text for a number": ({"model_config": {**digits.MODEL, "width": "2"}}, "width is '2': .*integer"),
    "a real number for a whole one": ({"model_config": {**digits.MODEL, "width": 2.0}}, r"width is 2\.0: .*integer"),
    "a truth value for a number": ({"model_config": {**digits.MODEL, "width": True}}, "width is True: .*integer"),
    "no width": ({"model_config": {**digits.MODEL, "width": 0}}, "width is 0: .*greater than or equal to 1"),
    "huge width": ({"model_config": {**digits.MODEL, "width": 10**9}}, "width is 1000000000: .*less than or equal"),
    "NaN as mean": ({"model_config": {**digits.MODEL, "mean": float("nan")}}, "mean"),
    "too many means": ({"model_config": {**digits.MODEL, "mean": (0.1, 0.2)}}, "mean has 2 values for 1 channels"),
    "temperature 0": ({"temperature": 0.0}, "temperature is 0.0; choose from 1e-06 to 1e"),
    "negative temperature": ({"temperature": -1.0}, "temperature is -1.0; choose from"),
    "NaN as temperature": ({"temperature": float("nan")}, "temperature is nan; choose from"),
    "infinite temperature": ({"temperature": float("inf")}, "temperature is inf; choose from"),
    "a negative priority exponent": ({"priority_exponent": -0.1}, "priority_exponent is -0.1; choose from 0 to 1000"),
    "NaN as priority exponent": ({"priority_exponent": float("nan")}, "priority_exponent is nan; choose from"),
    "a negative importance exponent": (
        {"importance_exponent": -0.1},
        "importance_exponent is -0.1; choose from 0 to 1",
    ),
    "a large importance exponent": ({"importance_exponent": 1.1}, "importance_exponent is 1.1; choose from 0 to 1"),
    "negative seed": ({"seed": -1}, "seed is -1; choose from 0"),
    "negative staleness": ({"max_staleness_steps": -1}, "max_staleness_steps is -1; choose from 0"),
    "no time": ({"deadline_s": 0.0}, "deadline_s is 0.0; choose from 0.001 to 3600"),
    "negative time": ({"deadline_s": -5.0}, "deadline_s is -5.0; choose from"),
    "too much time": ({"deadline_s": 1e6}, "deadline_s is 1000000.0; choose from"),
    "more time than weights are kept": (
        {"deadline_s": 120.0},
        r"deadline_s is 120, and the service keeps expired weights for 120 s \(weights.grace_s\)",
    ),
    "a negative start": ({"select_from_step": -1}, "select_from_step is -1; choose from 0"),
    "an end before the start": (
        {"select_from_step": 100, "select_until_step": 99},
        "select_until_step is 99 and select_from_step 100: selection would end before it starts; choose a later end",
    ),
    "an end at the start": ({"select_until_step": 0}, "select_until_step is 0 and select_from_step 0"),
    "everything held back": ({"control_fraction": 1.0}, "control_fraction is 1.0; choose from 0 to 0.99"),
    "a negative share held back": ({"control_fraction": -0.1}, "control_fraction is -0.1; choose from 0 to 0.99"),
    "NaN held back": ({"control_fraction": float("nan")}, "control_fraction is nan; choose from"),
    "blocks of nothing": ({"control_block_steps": 0}, "control_block_steps is 0; choose from 1"),
    "a control arm of uniform draws": (
        {"control_fraction": 0.1, "score": "uniform"},
        "control_fraction is 0.1 and score 'uniform': there is nothing to compare with; leave it at 0, or choose",
    ),
    "a negative warm-up": ({"warm_up_steps": -1}, "warm_up_steps is -1; choose from 0"),
    "a negative uniform share": ({"uniform_share": -0.1}, "uniform_share is -0.1; choose from 0 to 1"),
    "more than everything uniform": ({"uniform_share": 1.1}, "uniform_share is 1.1; choose from 0 to 1"),
    "NaN as uniform share": ({"uniform_share": float("nan")}, "uniform_share is nan; choose from 0 to 1"),
    "co-training without a learning rate": (
        {"co_training": CoTraining(learning_rate=0.0)},
        r"co_training.learning_rate is 0.0; choose from 1e-12 to 1000",
    ),
    "NaN as learning rate": (
        {"co_training": CoTraining(learning_rate=float("nan"))},
        "co_training.learning_rate is nan; choose from",
    ),
    "a momentum of 1": ({"co_training": CoTraining(momentum=1.0)}, "co_training.momentum is 1.0; choose from 0 to"),
    "blocks of no steps": (
        {"co_training": CoTraining(publish_every=0)},
        "co_training.publish_every is 0; choose from 1",
    ),
    "huge blocks": (
        {"co_training": CoTraining(publish_every=200, ranks=100)},
        "co_training.publish_every is 200 and ranks 100; a block has at most 10000 sub-batches",
    ),
    "more lag than versions": (
        {"co_training": CoTraining(lag=3)},
        r"co_training.lag is 3; choose from 0 to 2, .* \(weights.keep_versions\)",
    ),
    "a warm-up without end": (
        {"co_training": CoTraining(warm_up_steps=10, total_steps=10)},
        "co_training.warm_up_steps is 10 and total_steps 10: training would end before it warmed up",
    ),
    "co-training with a bound on staleness": (
        {"co_training": CoTraining(), "max_staleness_steps": 5},
        "max_staleness_steps is 5 together with co_training, whose lag and publish_every say how old",
    ),
    "co-training beside a memory bank": (
        {"co_training": CoTraining(), "memory_bank": MemoryBank(100)},
        "memory_bank is set together with co_training, which trains on what select answers",
    ),
    "co-training of what nobody reads": (
        {"co_training": CoTraining(), "score": "easy_reference"},
        "co_training is set, and score 'easy_reference' reads no learner; choose another, or leave it off",
    ),
    "an online reference beside another": (
        {"co_training": CoTraining(reference_examples=8), "reference_digest": "sha256:" + "0" * 64},
        "co_training.reference_examples is set together with reference_digest; the reference that is trained",
    ),
    "an online reference that was trained before": (
        {"co_training": CoTraining(reference_examples=8), "reference_training_share": 0.5},
        "co_training.reference_examples is set together with reference_training_share; the reference that is trained",
    ),
    "a negative share of training": (
        {"reference_training_share": -0.1},
        r"reference_training_share is -0.1; choose from 0 to 1e\+06",
    ),
    "an online reference that nobody reads": (
        {"co_training": CoTraining(reference_examples=8), "score": "hard_learner"},
        "co_training.reference_examples is set together with score 'hard_learner', which reads no reference",
    ),
    "models of other inputs": (
        {"reference_model": "small_cnn", "reference_model_config": {**digits.MODEL, "image_size": 16}},
        "model and reference_model read different super-batches",
    ),
    "models of other classes": (
        {"reference_model": "small_cnn", "reference_model_config": {**digits.MODEL, "num_classes": 5}},
        "model and reference_model read different super-batches",
    ),
}


@pytest.mark.parametrize(("settings", "text"), _INVALID.values(), ids=_INVALID.keys())
def test_settings_out_of_range_are_refused(
    client: SelectionClient, run_id: str, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(InvalidRunError, match=text) as raised:
        client.create_run(digits.spec(**{"run_id": run_id, **settings}))
    assert raised.value.code == "INVALID_ARGUMENT"
    assert "\n" not in str(raised.value)
    assert run_id not in [run.spec.run_id for run in client.list_runs()]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1e-6},
        {"temperature": 1e6},
        {"seed": 2**63 - 1},
        {"deadline_s": 0.001},
        {"deadline_s": 119.9},
        {"select_from_step": 2**63 - 2, "select_until_step": 2**63 - 1, "warm_up_steps": 2**63 - 1},
        {"uniform_share": 1.0},
        {"priority_exponent": 0.0, "importance_exponent": 0.0},
        {"priority_exponent": 1000.0, "importance_exponent": 1.0},
    ],
    ids=str,
)
def test_settings_at_their_bounds_are_taken_and_kept(
    client: SelectionClient, run_id: str, settings: dict[str, Any]
) -> None:
    spec = digits.spec(run_id, **settings)
    assert client.create_run(spec).spec == spec
    assert client.get_run(run_id).spec == spec


def test_an_id_of_63_characters_is_taken(client: SelectionClient) -> None:
    assert client.create_run(digits.spec("b" * 63)).run_id == "b" * 63


def _changed(spec: RunSpec, change: Callable[[run_pb2.RunSpec], None]) -> selection_pb2.CreateRunRequest:
    message = spec_to_proto(spec)
    change(message)
    return selection_pb2.CreateRunRequest(spec=message)


def _set(**fields: Any) -> Callable[[run_pb2.RunSpec], None]:
    def change(message: run_pb2.RunSpec) -> None:
        for name, value in fields.items():
            setattr(message, name, value)

    return change


def _with_settings(count: int) -> Callable[[run_pb2.RunSpec], None]:
    def change(message: run_pb2.RunSpec) -> None:
        for number in range(count):
            message.model.config[f"s{number}"].int_value = 1

    return change


def _with_text(text: str) -> Callable[[run_pb2.RunSpec], None]:
    def change(message: run_pb2.RunSpec) -> None:
        message.model.config["input_dtype"].string_value = text

    return change


_RAW_INVALID: dict[str, tuple[Callable[[run_pb2.RunSpec], None], str]] = {
    "nothing": (run_pb2.RunSpec.Clear, ""),
    "no deadline policy": (lambda spec: spec.ClearField("on_deadline"), "on_deadline"),
    "unknown deadline policy": (_set(on_deadline=99), "on_deadline"),
    "no stale policy under a bound": (_set(max_staleness_steps=3, on_stale=0), "on_stale"),
    "unknown stale policy": (_set(on_stale=99), "on_stale"),
    "no model": (lambda spec: spec.ClearField("model"), "model is ''"),
    "no task": (lambda spec: spec.ClearField("task"), "task is ''"),
    "no score": (lambda spec: spec.ClearField("score"), "score is ''"),
    "no selector": (lambda spec: spec.ClearField("selector"), "selector is ''"),
    "no temperature": (lambda spec: spec.ClearField("temperature"), "temperature is 0"),
    "an empty setting": (lambda spec: spec.model.config["width"].Clear(), "'width' is empty"),
    "65 settings": (_with_settings(65), "at most 64"),
    "a long text": (_with_text("x" * 257), "at most 256"),
    "a long list": (
        lambda spec: spec.model.config["mean"].float_list.values.extend([0.5] * 65),
        "at most 64",
    ),
    "an endless deadline": (
        lambda spec: spec.deadline.CopyFrom(Duration(seconds=2**63 - 1, nanos=999_999_999)),
        "deadline_s is",
    ),
}


@pytest.mark.parametrize(("change", "text"), _RAW_INVALID.values(), ids=_RAW_INVALID.keys())
def test_messages_that_the_client_would_not_send_are_refused(
    raw: RawChannel, run_id: str, change: Callable[[run_pb2.RunSpec], None], text: str
) -> None:
    status = raw.call("CreateRun", _changed(digits.spec(run_id), change)).status()
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "RUN_INVALID")
    assert text in status.details


def test_the_stale_policy_is_only_asked_for_under_a_bound(raw: RawChannel, run_id: str) -> None:
    request = _changed(digits.spec(run_id), lambda spec: spec.ClearField("on_stale"))
    assert raw.call("CreateRun", request).receive().run.spec.run_id == run_id


def test_a_reference_that_the_service_does_not_hold_is_not_found(client: SelectionClient, run_id: str) -> None:
    with pytest.raises(WeightsNotFoundError, match="the store has no weights sha256:0000"):
        client.create_run(digits.spec(run_id, reference_digest=f"sha256:{'0' * 64}"))
    with pytest.raises(WeightsNotFoundError, match=r"digest is '\.\./\.\./etc/passwd'; give 'sha256:'"):
        client.create_run(digits.spec(run_id, reference_digest="../../etc/passwd"))
    with pytest.raises(RunNotFoundError):
        client.get_run(run_id)


def test_a_reference_that_the_service_holds_needs_no_push(client: SelectionClient, run: Run, run_id: str) -> None:
    digest = run.status().reference_digest
    other = client.create_run(digits.spec(f"{run_id}-b", reference_digest=digest))
    other.push_weights(digits.weights(1), step=0)
    batch = digits.candidates(0)
    answered = other.select(batch, sub_batch_size=4, step=1)
    assert answered.indices.tolist() == digits.expected(
        other.spec, batch, digits.weights(1), digits.weights(2), count=4, step=1
    )


def test_the_same_spec_again_is_the_same_run(client: SelectionClient, run: Run) -> None:
    run.select(digits.candidates(0), sub_batch_size=1, step=7)
    again = client.create_run(run.spec).status()
    assert (again.last_step, again.super_batches, again.learner_version) == (7, 1, 1)
    assert again.create_time_s == run.status().create_time_s


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, "seed is 0, asked for 1"),
        ({"temperature": 0.5}, "temperature is 1.0, asked for 0.5"),
        ({"score": "uniform"}, "score is 'learnability', asked for 'uniform'"),
        ({"model_config": {**digits.MODEL, "width": 3}}, "model_config.width is 2, asked for 3;"),
    ],
    ids=["seed", "temperature", "score", "model_config"],
)
def test_another_spec_under_the_same_name_is_refused(
    client: SelectionClient, empty_run: Run, change: dict[str, Any], text: str
) -> None:
    with pytest.raises(RunExistsError, match=f"exists with other settings: {text}.* choose another run_id") as raised:
        client.create_run(replace(empty_run.spec, **change))
    assert raised.value.code == "ALREADY_EXISTS"
    assert client.get_run(empty_run.run_id).spec == empty_run.spec


_CALLS: dict[str, Callable[[SelectionClient, Run], object]] = {
    "select": lambda client, run: run.select(digits.candidates(0), sub_batch_size=1, step=1),
    "score": lambda client, run: run.score(digits.candidates(0)),
    "push_weights": lambda client, run: run.push_weights(digits.weights(1), step=1),
    "push_reference": lambda client, run: run.push_reference(digits.weights(1)),
    "status": lambda client, run: run.status(),
    "get_run": lambda client, run: client.get_run(run.run_id),
    "delete_run": lambda client, run: client.delete_run(run.run_id),
}


@pytest.mark.parametrize("call", _CALLS.values(), ids=_CALLS.keys())
def test_a_run_that_was_deleted_is_not_found(
    client: SelectionClient, target: str, empty_run: Run, call: Callable[[SelectionClient, Run], object]
) -> None:
    with SelectionClient(target) as other:
        other.delete_run(empty_run.run_id)
    with pytest.raises(RunNotFoundError, match=f"run '{empty_run.run_id}'") as raised:
        call(client, empty_run)
    assert raised.value.code == "NOT_FOUND"


@pytest.mark.parametrize("name", ["never-made", "", "../control", "x" * 10_000, "Control"])
def test_a_run_that_never_was_is_not_found(raw: RawChannel, name: str) -> None:
    calls = [
        raw.call("GetRun", selection_pb2.GetRunRequest(run_id=name)),
        raw.call("DeleteRun", selection_pb2.DeleteRunRequest(run_id=name)),
        raw.call("GetWeights", weights_pb2.GetWeightsRequest(run_id=name)),
        raw.call("Select", select_open(name)),
        raw.call("PushWeights", *push_messages(b"1234", run_id=name)),
        raw.call(
            "Score",
            selection_pb2.ScoreRequest(header=selection_pb2.ScoreHeader(run_id=name, row_count=1, body_bytes=1)),
        ),
    ]
    for call in calls:
        status = call.status()
        assert (status.code, status.reason) == ("NOT_FOUND", "RUN_NOT_FOUND")
        assert "there is no run" in status.details
        assert len(status.details) < 200


def test_a_run_that_cannot_be_made_leaves_no_trace(client: SelectionClient, raw: RawChannel, run_id: str) -> None:
    with pytest.raises(PreceptorError):
        client.create_run(digits.spec(run_id, reference_digest=f"sha256:{'1' * 64}"))
    again = client.create_run(digits.spec(run_id))
    assert again.status().reference_digest is None

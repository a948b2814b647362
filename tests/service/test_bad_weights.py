"""Weights that do not fit, do not arrive whole, or come at the wrong moment: nothing of them becomes visible."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from preceptor import Run, SelectionClient
from preceptor.errors import (
    InvalidWeightsError,
    ReferenceFrozenError,
    StaleWeightsError,
    TooLargeError,
    WeightsMissingError,
)
from preceptor.v1 import selection_pb2, weights_pb2
from tests.service import digits
from tests.service.conftest import MAX_WEIGHTS_BYTES, MIB, Control, Store
from tests.service.raw import RawChannel, chunk, push_messages

LEARNER = weights_pb2.WEIGHTS_ROLE_LEARNER
REFERENCE = weights_pb2.WEIGHTS_ROLE_REFERENCE


@pytest.fixture(autouse=True)
def alive(control: Control) -> Iterator[None]:
    yield
    control.check()


def _changed(**tensors: torch.Tensor | None) -> digits.State:
    state: dict[str, Any] = {**digits.weights(5), **{name.replace("__", "."): value for name, value in tensors.items()}}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


def _with_one(value: float) -> torch.Tensor:
    tensor = digits.weights(5)["conv2.weight"].clone()
    tensor.view(-1)[7] = value
    return tensor


_MISFITS: dict[str, tuple[digits.State, str]] = {
    "missing": (_changed(head__bias=None), r"1 tensor missing: head.bias; push the whole state_dict"),
    "extra": (_changed(extra=torch.zeros(3)), "1 tensor not in the run's model: extra; push what its state_dict holds"),
    "misshapen": (
        _changed(head__bias=torch.zeros(5)),
        r"do not fit: head.bias has shape \[5\], expected \[4\]; create the run with the settings of the model",
    ),
    "transposed": (_changed(head__weight=torch.zeros(8, 4)), r"head.weight has shape \[8, 4\], expected \[4, 8\]"),
    "whole numbers": (
        _changed(head__bias=torch.zeros(4, dtype=torch.int64)),
        "head.bias has type I64, expected F32 or BF16 or F16",
    ),
    "float64": (_changed(head__bias=torch.zeros(4, dtype=torch.float64)), "head.bias has type F64, expected F32"),
    "NaN": (_changed(conv2__weight=_with_one(float("nan"))), r"NaN or infinity: conv2.weight \(1 of 72 values\)"),
    "infinity": (_changed(conv2__weight=_with_one(float("-inf"))), r"NaN or infinity: conv2.weight \(1 of 72"),
    "a path as name": (
        {**digits.weights(5), "../../etc/passwd": torch.zeros(1)},
        r"not in the run's model: \.\./\.\./etc/passwd",
    ),
    "an empty name": ({**digits.weights(5), "": torch.zeros(1)}, "1 tensor not in the run's model"),
    "a model of another width": (
        digits.weights(5, {**digits.MODEL, "width": 3}),
        "7 tensors that do not fit: conv1.weight has shape .* and 4 more",
    ),
}


@pytest.mark.parametrize(("state", "text"), _MISFITS.values(), ids=_MISFITS.keys())
@pytest.mark.parametrize("role", ["learner", "reference"])
def test_weights_that_do_not_fit_are_refused_and_nothing_changes(
    client: SelectionClient, run: Run, state: digits.State, text: str, role: str
) -> None:
    before = run.status()
    push = partial(run.push_weights, step=1) if role == "learner" else run.push_reference
    with pytest.raises(InvalidWeightsError, match=text) as raised:
        push(state)
    assert raised.value.code == "INVALID_ARGUMENT"
    assert run.status() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_taken(empty_run: Run, dtype: torch.dtype) -> None:
    halved = {name: tensor.to(dtype) for name, tensor in digits.weights(5).items()}
    empty_run.push_weights(halved, step=0)
    empty_run.push_reference(digits.weights(2))
    batch = digits.candidates(0)
    widened = {name: tensor.float() for name, tensor in halved.items()}
    assert empty_run.select(batch, sub_batch_size=5, step=1).indices.tolist() == digits.expected(
        empty_run.spec, batch, widened, digits.weights(2), count=5, step=1
    )


def _file(state: digits.State | None = None) -> bytes:
    return save(state or digits.weights(5))


def _claiming(header: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


_FILES: dict[str, tuple[bytes, str]] = {
    "noise": (np.random.default_rng(0).bytes(3000), "the weights are not a safetensors file"),
    "a pickle": (b"\x80\x04cos\nsystem\n(S'true'\ntR.", "the weights are not a safetensors file"),
    "one byte": (b"1", "the weights are not a safetensors file"),
    "header alone": (_file()[:200], "the weights are not a safetensors file"),
    "a header of 2^63 bytes": ((2**63).to_bytes(8, "little") + b"{}", "the weights are not a safetensors file"),
    "tensors beyond the end": (
        _claiming({"head.bias": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}),
        "the weights are not a safetensors file",
    ),
    "no tensors": (_claiming({}), "8 tensors missing"),
    "an unknown type": (
        _claiming({"head.bias": {"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 1]}}, b"1"),
        "the weights are not a safetensors file",
    ),
}


@pytest.mark.parametrize(("data", "text"), _FILES.values(), ids=_FILES.keys())
def test_a_file_that_is_not_safetensors_is_refused(raw: RawChannel, run: Run, data: bytes, text: str) -> None:
    status = raw.call("PushWeights", *push_messages(data, run_id=run.run_id, step=1)).status()
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", "WEIGHTS_INVALID")
    assert text in status.details
    assert run.status().learner_version == 1


def _push(raw: RawChannel, run: Run, change: Callable[[list[weights_pb2.PushWeightsRequest]], object]) -> Any:
    messages = push_messages(_file(), run_id=run.run_id, step=1)
    change(messages)
    call = raw.call("PushWeights", *messages)
    call.half_close()
    return call.status()


def _request(**kind: Any) -> weights_pb2.PushWeightsRequest:
    return weights_pb2.PushWeightsRequest(**kind)


_HALF = len(_file()) // 2
_BROKEN: dict[str, tuple[Callable[[list[weights_pb2.PushWeightsRequest]], object], str, str]] = {
    "another checksum": (
        lambda messages: messages[2].MergeFrom(_request(commit=weights_pb2.PushCommit(sha256=b"\0" * 32))),
        "WEIGHTS_INVALID",
        f"weights have the SHA-256 {hashlib.sha256(_file()).hexdigest()}, announced was {'00' * 32}; push again",
    ),
    "no checksum": (
        lambda messages: messages[2].commit.ClearField("sha256"),
        "WEIGHTS_INVALID",
        "the SHA-256 in PushCommit has 0 bytes, and a SHA-256 has 32; give that of the file",
    ),
    "a checksum of another length": (
        lambda messages: messages[2].MergeFrom(_request(commit=weights_pb2.PushCommit(sha256=b"\0" * 60_000))),
        "WEIGHTS_INVALID",
        "the SHA-256 in PushCommit has 60000 bytes, and a SHA-256 has 32; give that of the file",
    ),
    "truncated": (
        lambda messages: messages[1].MergeFrom(_request(chunk=selection_pb2.Chunk(data=_file()[:_HALF]))),
        "WEIGHTS_INVALID",
        f"the weights are truncated: {_HALF} of {len(_file())} bytes came; send all",
    ),
    "no chunk": (lambda messages: messages.pop(1), "WEIGHTS_INVALID", "the weights are truncated: 0 of"),
    "more than announced": (
        lambda messages: messages[1].MergeFrom(_request(chunk=selection_pb2.Chunk(data=_file() + b"!"))),
        "MESSAGE_INVALID",
        f"ends at {len(_file()) + 1}, {len(_file())} bytes were announced",
    ),
    "an empty chunk": (
        lambda messages: messages.insert(1, _request(chunk=selection_pb2.Chunk())),
        "MESSAGE_INVALID",
        "the chunk at offset 0 is empty; send at least one byte",
    ),
    "out of order": (
        lambda messages: messages[1].MergeFrom(_request(chunk=selection_pb2.Chunk(offset=3))),
        "MESSAGE_INVALID",
        "a chunk has offset 3, 0 was next; send chunks in order",
    ),
    "no header": (lambda messages: messages.pop(0), "MESSAGE_INVALID", "does not start with PushHeader; send it first"),
    "two headers": (
        lambda messages: messages.insert(1, messages[0]),
        "MESSAGE_INVALID",
        "something other than a Chunk came inside the weights",
    ),
    "no commit": (lambda messages: messages.pop(2), "MESSAGE_INVALID", "the stream ended too early"),
    "a chunk for a commit": (lambda messages: messages.__setitem__(2, messages[1]), "MESSAGE_INVALID", "PushCommit"),
    "nothing": (lambda messages: messages.clear(), "MESSAGE_INVALID", "the stream ended too early"),
    "an empty message": (lambda messages: messages.insert(0, _request()), "MESSAGE_INVALID", "PushHeader"),
    "no role": (lambda messages: messages[0].header.ClearField("role"), "MESSAGE_INVALID", "name learner or reference"),
    "an unknown role": (
        lambda messages: messages[0].header.MergeFrom(weights_pb2.PushHeader(role=77)),  # type: ignore[arg-type]
        "MESSAGE_INVALID",
        "role is 77; name learner or reference",
    ),
    "a negative step": (
        lambda messages: messages[0].header.MergeFrom(weights_pb2.PushHeader(step=-1)),
        "MESSAGE_INVALID",
        "step is -1; steps start at 0",
    ),
    "a reference with a step": (
        lambda messages: messages[0].header.MergeFrom(weights_pb2.PushHeader(role=REFERENCE)),
        "MESSAGE_INVALID",
        "step is 1; a reference has step 0",
    ),
    "no bytes": (
        lambda messages: messages[0].header.ClearField("total_bytes"),
        "WEIGHTS_INVALID",
        "the weights have 0 bytes; push at least one tensor",
    ),
    "negative bytes": (
        lambda messages: messages[0].header.MergeFrom(weights_pb2.PushHeader(total_bytes=-5)),
        "WEIGHTS_INVALID",
        "the weights have -5 bytes",
    ),
}


@pytest.mark.parametrize(("change", "reason", "text"), _BROKEN.values(), ids=_BROKEN.keys())
def test_a_push_that_breaks_the_order_or_is_damaged_is_refused(
    raw: RawChannel,
    run: Run,
    change: Callable[[list[weights_pb2.PushWeightsRequest]], object],
    reason: str,
    text: str,
) -> None:
    status = _push(raw, run, change)
    assert (status.code, status.reason) == ("INVALID_ARGUMENT", reason)
    assert text in status.details
    assert run.status().learner_version == 1
    assert run.push_weights(digits.weights(5), step=1).version == 2


def test_weights_above_the_limit_are_refused_before_they_are_sent(raw: RawChannel, run: Run) -> None:
    call = raw.call("PushWeights", push_messages(b"", run_id=run.run_id, total_bytes=MAX_WEIGHTS_BYTES + 1)[0])
    status = call.status()
    assert (status.code, status.reason) == ("RESOURCE_EXHAUSTED", "TOO_LARGE")
    assert f"weights have {MAX_WEIGHTS_BYTES + 1} bytes, the limit is {MAX_WEIGHTS_BYTES}" in status.details


def test_the_client_passes_on_that_weights_are_too_large(run: Run) -> None:
    with pytest.raises(TooLargeError, match="push a smaller proxy, or bfloat16"):
        run.push_weights({"w": torch.zeros(MAX_WEIGHTS_BYTES // 4)}, step=1)


def test_a_message_above_the_limit_is_refused(raw: RawChannel, run: Run) -> None:
    data = b"x" * (2 * MIB)
    status = raw.call("PushWeights", *push_messages(data, run_id=run.run_id, total_bytes=MAX_WEIGHTS_BYTES)).status()
    assert status.code == "RESOURCE_EXHAUSTED"
    assert "larger than max" in status.details


def test_weights_of_several_messages_are_taken(client: SelectionClient, run_id: str) -> None:
    wide = {**digits.MODEL, "width": 96}
    run = client.create_run(digits.spec(run_id, model_config=wide, score="hard_learner"))
    assert run.push_weights(digits.weights(1, wide), step=0).version == 1


def test_a_push_that_breaks_off_leaves_nothing_behind(raw: RawChannel, run: Run, service_store: Store) -> None:
    whole = _file()
    messages = push_messages(whole, run_id=run.run_id, step=1)
    call = raw.call("PushWeights", messages[0], _request(chunk=chunk(whole[:100]).chunk))
    service_store.wait_for_uploads(1)
    call.cancel()
    service_store.wait_for_uploads(0)
    assert run.status().learner_version == 1


def test_selecting_before_any_weights_says_what_to_push(client: SelectionClient, empty_run: Run) -> None:
    name = empty_run.run_id
    with pytest.raises(WeightsMissingError, match=f"'{name}' has no learner weights; call push_weights") as raised:
        empty_run.select(digits.candidates(0), sub_batch_size=1, step=1)
    assert raised.value.code == "FAILED_PRECONDITION"
    empty_run.push_weights(digits.weights(1), step=0)
    with pytest.raises(WeightsMissingError, match=f"'{name}' has no reference; call push_reference"):
        empty_run.select(digits.candidates(0), sub_batch_size=1, step=1)
    with pytest.raises(WeightsMissingError, match="call push_reference"):
        empty_run.score(digits.candidates(0))
    empty_run.push_reference(digits.weights(2))
    assert len(empty_run.select(digits.candidates(0), sub_batch_size=1, step=1).indices) == 1


@pytest.mark.parametrize(
    ("score", "pushed", "missing"),
    [
        ("hard_learner", None, "push_weights"),
        ("easy_reference", None, "push_reference"),
        ("learnability", "reference", "push_weights"),
        ("learnability", "learner", "push_reference"),
    ],
)
def test_only_the_weights_that_the_score_needs_are_asked_for(
    client: SelectionClient, run_id: str, score: str, pushed: str | None, missing: str
) -> None:
    run = client.create_run(digits.spec(run_id, score=score))
    if pushed == "reference":
        run.push_reference(digits.weights(2))
    if pushed == "learner":
        run.push_weights(digits.weights(1), step=0)
    with pytest.raises(WeightsMissingError, match=f"call {missing}"):
        run.select(digits.candidates(0), sub_batch_size=1, step=1)


def test_uniform_selection_needs_no_weights(client: SelectionClient, run_id: str) -> None:
    run = client.create_run(digits.spec(run_id, score="uniform", selector="uniform"))
    selection = run.select(digits.candidates(0), sub_batch_size=8, step=4)
    assert selection.indices.tolist() == digits.as_uniform(run.spec, rows=32, count=8, step=4)
    assert selection.learner_version is None
    assert not selection.is_fallback


def test_an_older_step_is_refused_unless_it_is_a_rewind(run: Run) -> None:
    run.push_weights(digits.weights(3), step=10)
    with pytest.raises(StaleWeightsError, match=r"step is 9, the committed learner's is 10; .* set rewind") as raised:
        run.push_weights(digits.weights(4), step=9)
    assert raised.value.code == "FAILED_PRECONDITION"
    rewound = run.push_weights(digits.weights(4), step=9, rewind=True)
    assert (rewound.version, rewound.step) == (3, 9)
    batch = digits.candidates(0)
    selection = run.select(batch, sub_batch_size=6, step=11)
    assert (selection.learner_version, selection.learner_step, selection.staleness_steps) == (3, 9, 2)
    assert selection.indices.tolist() == digits.expected(
        run.spec, batch, digits.weights(4), digits.weights(2), count=6, step=11
    )


def test_the_same_push_again_is_the_same_version(run: Run) -> None:
    first = run.push_weights(digits.weights(3), step=10)
    again = run.push_weights(digits.weights(3), step=10)
    assert (again.version, again.digest) == (first.version, first.digest)
    assert run.push_weights(digits.weights(3), step=11).version == first.version + 1


def test_a_reference_is_frozen(run: Run) -> None:
    digest = run.status().reference_digest
    assert run.push_reference(digits.weights(2)).digest == digest
    with pytest.raises(ReferenceFrozenError, match=f"has the reference {digest}, .* create another run") as raised:
        run.push_reference(digits.weights(3))
    assert raised.value.code == "ALREADY_EXISTS"
    assert run.status().reference_digest == digest

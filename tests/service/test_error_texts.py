"""Texts of errors on their way to a caller: at most 1 KiB, by whichever way they leave, whatever was sent."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import pytest

from preceptor import Run, SelectionClient
from preceptor.errors import (
    InternalError,
    InvalidRunError,
    InvalidSuperBatchError,
    PreceptorError,
    RunNotFoundError,
    UnavailableError,
)
from preceptor_service.gateway.status import text_of
from preceptor_service.pipeline import Pipeline
from preceptor_service.runs import RunRegistry
from tests.service import digits
from tests.service.raw import RawChannel, select_open, super_batch

_LIMIT = 1024
_LONG = "x" * 60_000


def _check(raised: PreceptorError, *said: str) -> None:
    text = str(raised)
    assert len(text.encode()) <= _LIMIT
    for piece in said:
        assert piece in text


@pytest.mark.parametrize("text", ["x" * 5000, "é" * 5000, "x" + "😀" * 5000, "\udcff" * 5000])
def test_a_text_is_cut_at_a_kibibyte_between_two_characters(text: str) -> None:
    cut = text_of(InternalError(text))
    assert _LIMIT - 4 <= len(cut.encode()) <= _LIMIT
    assert cut.endswith("…")
    assert text_of(InternalError("é" * 512)) == "é" * 512


def _offer(run: Run, call: str, batch: dict[str, Any], ids: Any = None) -> None:
    if call == "select":  # answered by a Failure in the stream
        run.select(batch, sub_batch_size=1, step=1, example_id=ids)
    else:  # by the status of the call
        run.score(batch, example_id=ids)


@pytest.mark.parametrize("call", ["select", "score"])
def test_an_example_id_is_quoted_shortened(run: Run, call: str) -> None:
    batch, ids = digits.candidates(0, rows=2), np.array(["dup-" + _LONG] * 2)
    with pytest.raises(InvalidSuperBatchError) as raised:
        _offer(run, call, batch, ids)
    _check(raised.value, "example_id 'dup-xxx", "is in rows 0 and 1, and their content differs")


@pytest.mark.parametrize("call", ["select", "score"])
def test_names_of_columns_are_quoted_shortened(run: Run, call: str) -> None:
    batch = {**digits.candidates(0, rows=2), _LONG: np.zeros(2, np.int64)}
    with pytest.raises(InvalidSuperBatchError) as raised:
        _offer(run, call, batch)
    _check(raised.value, "the super-batch has columns ['image', 'label', 'xxx", "this run expects ['image', 'label']")


def test_the_name_of_a_setting_is_quoted_shortened(client: SelectionClient, run_id: str) -> None:
    with pytest.raises(InvalidRunError) as raised:
        client.create_run(digits.spec(run_id, model_config={**digits.MODEL, _LONG: 1}))
    _check(raised.value, "no setting 'xxx", "it takes ['in_channels'")


@pytest.mark.parametrize("name", ["run_id", "task", "score", "selector", "model", "reference_digest"])
def test_a_setting_that_is_a_text_is_quoted_shortened(client: SelectionClient, run_id: str, name: str) -> None:
    with pytest.raises(PreceptorError) as raised:
        client.create_run(digits.spec(**{"run_id": run_id, name: _LONG}))
    _check(raised.value, "xxx")


def test_a_text_that_nobody_shortened_reaches_the_caller_cut_from_a_call(
    run: Run, raw: RawChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> NoReturn:
        raise RunNotFoundError("é" * 100_000)

    monkeypatch.setattr(RunRegistry, "get", failing)
    with pytest.raises(RunNotFoundError) as raised:
        run.status()
    _check(raised.value)
    call = raw.call("Select", select_open(run.run_id))
    status = call.status()
    assert (status.code, status.reason) == ("NOT_FOUND", "RUN_NOT_FOUND")
    assert len(status.details.encode()) <= _LIMIT


def test_a_text_that_nobody_shortened_reaches_the_caller_cut_from_a_stream(
    run: Run, raw: RawChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> NoReturn:
        raise UnavailableError("é" * 100_000)

    monkeypatch.setattr(Pipeline, "pin", failing)
    call = raw.call("Select", select_open(run.run_id))
    call.send(*super_batch(digits.candidates(1), step=1))
    failure = call.answer().failure
    assert failure.reason == "UNAVAILABLE"
    assert len(failure.message.encode()) <= _LIMIT
    assert failure.message.endswith("…")
    call.cancel()

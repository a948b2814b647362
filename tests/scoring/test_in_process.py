"""The pool of one scorer in this process."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from pathlib import Path

import pytest

from preceptor.errors import (
    InternalError,
    OverloadedError,
    PreceptorError,
    ResourceExhaustedError,
    ScorersUnavailableError,
    TooLargeError,
    UnavailableError,
    WeightsNotFoundError,
)
from preceptor_service.scoring.in_process import InProcessPool
from preceptor_service.scoring.pool import (
    LoadReport,
    Losses,
    MicroBatch,
    ModelRef,
    ScorerFailedError,
    ScorerLostError,
    ScorerPool,
    ScoringModels,
)
from tests.scoring.engines import Bench, digits, models

PATIENCE_S = 20.0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_it_answers_as_its_engine_does(bench: Bench) -> None:
    learner, _ = bench.small_cnn(1)
    reference, _ = bench.small_cnn(2)
    wanted = models(learner, reference)
    expected = [bench.engine.losses(wanted, digits(seed)).learner for seed in range(3)]

    async def score() -> None:
        pool: ScorerPool = InProcessPool(bench.engine)
        assert await pool.load(wanted) == LoadReport(loaded=1, asked=1)
        answers = await asyncio.gather(*(pool.losses(wanted, digits(seed)) for seed in range(3)))
        for answer, losses in zip(answers, expected, strict=True):
            assert answer.learner is not None
            assert losses is not None
            assert answer.learner.tobytes() == losses.tobytes()
        await pool.close()

    asyncio.run(score())


def test_models_that_have_to_be_loaded_first_do_not_hold_up_those_that_are_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = bench.small_cnn(1)
    elsewhere, _ = bench.small_cnn(2)
    bench.engine.load(models(here, None))
    verify = bench.store.verify
    go_on = threading.Event()

    def slow(digest: str) -> Path:
        assert go_on.wait(PATIENCE_S)
        return verify(digest)

    monkeypatch.setattr(bench.store, "verify", slow)

    async def score() -> None:
        pool = InProcessPool(bench.engine)
        first = asyncio.create_task(pool.losses(models(elsewhere, None), digits(0)))
        async with asyncio.timeout(PATIENCE_S):
            assert (await pool.losses(models(here, None), digits(0))).learner is not None
        assert not first.done()
        go_on.set()
        assert (await first).learner is not None
        await pool.close()

    asyncio.run(score())


def test_who_waits_for_a_load_is_told_how_long_and_who_does_not_is_told_none(bench: Bench) -> None:
    here, _ = bench.small_cnn(1)
    elsewhere, _ = bench.small_cnn(2)

    async def score() -> None:
        pool = InProcessPool(bench.engine)
        await pool.load(models(here, None))
        assert (await pool.losses(models(here, None), digits(0))).load_s == 0
        assert (await pool.losses(models(elsewhere, None), digits(0))).load_s > 0
        assert (await pool.losses(models(elsewhere, None), digits(0))).load_s == 0
        await pool.close()

    asyncio.run(score())


def test_weights_load_beside_scoring(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    old, _ = bench.small_cnn(1)
    new, _ = bench.small_cnn(2)
    bench.engine.load(models(old, None))
    verify = bench.store.verify
    go_on = threading.Event()

    def slow(digest: str) -> Path:
        assert go_on.wait(PATIENCE_S)
        return verify(digest)

    monkeypatch.setattr(bench.store, "verify", slow)

    async def score() -> None:
        pool = InProcessPool(bench.engine)
        loading = asyncio.create_task(pool.load(models(new, None)))
        async with asyncio.timeout(PATIENCE_S):
            assert (await pool.losses(models(old, None), digits(0))).learner is not None
            assert not loading.done()
            go_on.set()
            assert await loading == LoadReport(loaded=1, asked=1)
            await pool.close()

    asyncio.run(score())


def test_a_load_that_fails_is_counted_and_logged_and_raised_when_scoring(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    ref, _ = bench.small_cnn(1)
    missing = models(ModelRef(ref.architecture, ref.config, "sha256:" + "0" * 64, 9), None)

    async def score() -> None:
        pool = InProcessPool(bench.engine)
        with caplog.at_level(logging.WARNING):
            assert await pool.load(missing) == LoadReport(loaded=0, asked=1)
        with pytest.raises(WeightsNotFoundError):
            await pool.losses(missing, digits(0))
        await pool.close()

    asyncio.run(score())
    assert "run run: weights are not loaded" in caplog.text


def raised_by_a_pool_whose_engine_raises(bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception) -> Exception:
    def losses(models: ScoringModels, batch: MicroBatch) -> Losses:
        raise error

    ref, _ = bench.small_cnn(1)
    monkeypatch.setattr(bench.engine, "losses", losses)

    async def score() -> None:
        pool = InProcessPool(bench.engine)
        try:
            await pool.losses(models(ref, None), digits(0))
        finally:
            await pool.close()

    with pytest.raises((PreceptorError, ScorerLostError)) as raised:
        asyncio.run(score())
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        OSError(errno.EIO, "a secret path"),
        OSError(errno.ESTALE, "a secret path"),
        FileNotFoundError(errno.ENOENT, "a secret path"),
    ],
    ids=["device", "EIO", "ESTALE", "ENOENT"],
)
def test_what_is_not_ours_is_a_failure_of_this_scorer_whose_cause_only_its_log_names(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    raised = raised_by_a_pool_whose_engine_raises(bench, monkeypatch, error)
    assert isinstance(raised, ScorerFailedError)
    assert isinstance(raised.answer, InternalError)
    assert "its log says why" in str(raised.answer)
    assert str(error) not in str(raised)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@pytest.mark.parametrize("kind", [ResourceExhaustedError, OverloadedError, UnavailableError, InternalError])
def test_memory_and_store_are_a_scorers_own_and_what_it_says_of_them_stays_the_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: type[PreceptorError]
) -> None:
    error = kind("lower scorer.micro_batch_rows")
    raised = raised_by_a_pool_whose_engine_raises(bench, monkeypatch, error)
    assert isinstance(raised, ScorerFailedError)
    assert raised.answer is error


@pytest.mark.parametrize("kind", [TooLargeError, WeightsNotFoundError])
def test_what_every_scorer_would_answer_is_the_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, kind: type[PreceptorError]
) -> None:
    error = kind("of the request")
    assert raised_by_a_pool_whose_engine_raises(bench, monkeypatch, error) is error


def test_a_closed_pool_says_so(bench: Bench) -> None:
    ref, _ = bench.small_cnn(1)

    async def score() -> None:
        pool = InProcessPool(bench.engine)
        await pool.close()
        await pool.close()
        with pytest.raises(ScorersUnavailableError):
            await pool.losses(models(ref, None), digits(0))
        with pytest.raises(ScorersUnavailableError):
            await pool.load(models(ref, None))

    asyncio.run(score())

"""When a micro-batch is offered again, and when it is given up."""

from __future__ import annotations

import numpy as np
import pytest

from preceptor.errors import InternalError, ScorersUnavailableError
from preceptor_service.scoring.pool import MicroBatch, ScorerFailedError, ScorerLostError, ScorerUnreachableError
from preceptor_service.scoring.rescoring import Rescoring

BATCH = MicroBatch({"label": np.arange(3)}, 3)
GONE = ScorerUnreachableError("cut off")


def failed(scorer: str | None) -> ScorerFailedError:
    error = ScorerFailedError(InternalError("broken"))
    error.scorer = scorer
    return error


def test_five_scorers_are_lost_with_a_micro_batch_and_no_sixth() -> None:
    rescoring = Rescoring(BATCH)
    pauses = [rescoring.pause_s(error) for error in (ScorerLostError("killed"), TimeoutError(), failed(None))]
    pauses.append(rescoring.pause_s(ScorerLostError("killed")))
    assert pauses == sorted(pauses)
    assert sum(pauses) < 2
    with pytest.raises(ScorersUnavailableError, match="5 scorers were lost with the same 3 candidates"):
        rescoring.pause_s(TimeoutError())


def test_what_the_last_of_five_says_is_the_answer_where_it_failed() -> None:
    rescoring = Rescoring(BATCH)
    for _ in range(4):
        rescoring.pause_s(failed("a"))
    last = failed("b")
    with pytest.raises(ScorerFailedError) as raised:
        rescoring.pause_s(last)
    assert raised.value is last


def test_scorers_that_cannot_be_reached_count_nothing_and_are_asked_less_and_less_often() -> None:
    rescoring = Rescoring(BATCH)
    pauses = [rescoring.pause_s(GONE) for _ in range(100)]
    assert all(0.025 <= pause <= 0.5 for pause in pauses)
    assert pauses[0] <= 0.05
    assert min(pauses[4:]) >= 0.25
    assert len(set(pauses)) > 50, "many micro-batches would come back at the same moment"
    for _ in range(4):
        rescoring.pause_s(ScorerLostError("killed"))
    assert rescoring.pause_s(GONE) <= 0.05, "one was reached in between"
    with pytest.raises(ScorersUnavailableError):
        rescoring.pause_s(ScorerLostError("killed"))


def test_it_names_the_scorers_that_failed_until_there_seem_to_be_no_others() -> None:
    rescoring = Rescoring(BATCH)
    rescoring.pause_s(failed("a"))
    rescoring.pause_s(failed("b"))
    assert rescoring.micro_batch.failed_at == ("a", "b")
    named = []
    for _ in range(20):
        rescoring.pause_s(GONE)
        named.append(rescoring.micro_batch.failed_at)
    assert named == [*[("a", "b")] * 19, ()]
    assert rescoring.micro_batch.row_count == 3

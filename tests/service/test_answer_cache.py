"""Answers that are kept for repeats: bounded by what they take in memory, the least recently used going first."""

from __future__ import annotations

import tracemalloc

from preceptor.v1 import selection_pb2
from preceptor_service.gateway.answer_cache import AnswerCache, StepKey

LIMIT_BYTES = 1 << 20
ANSWERS = 5_000
"""About half as much in bytes on the wire, and three times as much in memory."""
IDENTITY = bytes(32)


def key(step: int) -> StepKey:
    return StepKey("run", 1.5, step, 0)


def answer(step: int) -> selection_pb2.Selection:
    found = selection_pb2.Selection(step=step, indices=bytes(8), scores=bytes(32), learner_version=1, learner_step=0)
    for stage in found.timings.DESCRIPTOR.fields[:6]:
        getattr(found.timings, stage.name).nanos = 123_456
    return found


def test_any_number_of_small_answers_takes_no_more_memory_than_the_bound() -> None:
    cache = AnswerCache(LIMIT_BYTES)
    tracemalloc.start()
    try:
        for step in range(ANSWERS):
            cache.add(key(step), b"1/" + step.to_bytes(32), answer(step))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert LIMIT_BYTES / 2 < taken <= LIMIT_BYTES


def test_the_least_recently_used_goes_first_and_what_stays_is_whole() -> None:
    cache = AnswerCache(LIMIT_BYTES)
    for step in range(ANSWERS):
        cache.add(key(step), IDENTITY, answer(step))
        assert cache.find(key(0), IDENTITY, 0) == answer(0)
    held = [step for step in range(ANSWERS) if cache.find(key(step), IDENTITY, 0) is not None]
    assert held == [0, *range(ANSWERS - len(held) + 1, ANSWERS)]

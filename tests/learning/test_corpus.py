"""Clean documents follow the language's rules, garbled ones have the same words and do not."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from benchmarks.learning.data import Parts, build
from benchmarks.learning.data.corpus import CONTEXT, VOCABULARY, language
from benchmarks.learning.data.parts import IS_NOISE, rows_of
from benchmarks.learning.settings import Data

LIMIT = 500


@pytest.fixture(scope="module")
def parts() -> Parts:
    return build(Data("garbled_documents", {"share": 0.5, "limit": LIMIT}), seed=3)


def follows_a_topic(words: list[int]) -> bool:
    """Whether there is a topic in which every word is a possible successor of the one before."""
    successors, _ = language()
    return any(
        all(after in successors[topic, before] for before, after in pairwise(words)) for topic in range(len(successors))
    )


def test_half_of_the_pool_is_garbled_and_the_rest_follows_the_language(parts: Parts) -> None:
    is_garbled = parts.pool[IS_NOISE].tolist()
    documents = parts.pool["input_ids"].tolist()

    assert sum(is_garbled) == LIMIT // 2
    assert [follows_a_topic(words) for words in documents] == [not garbled for garbled in is_garbled]


def test_garbled_documents_have_the_words_of_the_document_that_they_were(parts: Parts) -> None:
    whole = build(Data("garbled_documents", {"share": 0.0, "limit": LIMIT}), seed=3)

    assert torch.equal(parts.pool["input_ids"].sort(1).values, whole.pool["input_ids"].sort(1).values)
    assert not whole.pool[IS_NOISE].any()


def test_clean_pieces_follow_the_language_and_share_no_id(parts: Parts) -> None:
    pieces = [parts.pool, parts.clean, parts.validation, parts.test()]
    ids = [set(piece["example_id"].tolist()) for piece in pieces]

    assert [rows_of(piece) for piece in pieces] == list(map(len, ids)) == [LIMIT] * 4
    assert len(set().union(*ids)) == 4 * LIMIT
    for piece in pieces[1:]:
        assert all(map(follows_a_topic, piece["input_ids"].tolist()))
        assert piece["input_ids"].shape == piece["attention_mask"].shape == (LIMIT, CONTEXT)
        assert 0 <= int(piece["input_ids"].min()) <= int(piece["input_ids"].max()) < VOCABULARY


def test_the_same_seed_gives_the_same_documents_and_another_seed_others(parts: Parts) -> None:
    data = Data("garbled_documents", {"share": 0.5, "limit": LIMIT})

    assert torch.equal(build(data, seed=3).pool["input_ids"], parts.pool["input_ids"])
    assert not torch.equal(build(data, seed=4).pool["input_ids"], parts.pool["input_ids"])


def test_successors_are_different_words_of_falling_likelihood() -> None:
    successors, likelihood = language()

    assert float(likelihood.sum()) == pytest.approx(1)
    assert list(likelihood) == sorted(likelihood, reverse=True)
    assert all(len(set(row)) == len(row) for topic in successors.tolist() for row in topic)

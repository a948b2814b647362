"""The journal: handed out once, read back whole, cleared away without losing an answer; in a directory and a bucket."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from preceptor.errors import InternalError
from preceptor_service.co_training.blocks import Handout
from preceptor_service.co_training.journal import Answer, Columns, Journal, check_content, entry_content
from preceptor_service.run_store import RunStore
from tests.stores import Place
from tests.weight_store.pushing import create_run


def answer(seed: int) -> Answer:
    random = np.random.default_rng(seed)
    return Answer(
        identity=f"4/{seed:02x}",
        indices=random.permutation(12)[:4],
        scores=random.standard_normal(12).astype(np.float32),
        weights=np.empty(0, np.float32),
        learner_version=seed + 1,
        learner_step=seed,
        fallback=None,
        non_finite_count=0,
    )


def rows(seed: int) -> Columns:
    random = np.random.default_rng(100 + seed)
    return {
        "image": random.integers(0, 256, (4, 1, 2, 2), dtype=np.uint8),
        "label": random.integers(0, 9, 4),
        "answer": random.standard_normal(4).astype(np.float32),
    }


def entry(handout: Handout, of: int | None = None) -> bytes:
    number = handout.step if of is None else of
    return entry_content(handout, {"online": rows(number), "reference": rows(number + 50)}, answer(number))


def same(found: Answer | None, wanted: Answer) -> bool:
    return found is not None and all(
        np.array_equal(getattr(found, field.name), getattr(wanted, field.name)) for field in fields(Answer)
    )


@pytest.fixture
def journal(place: Place) -> Journal:
    create_run(place.open())
    return Journal(place.open())


def hand_out(journal: Journal, *handouts: Handout) -> None:
    folder = journal.open("run")
    for handout in handouts:
        assert journal.create(folder, handout, entry(handout))


def test_what_was_handed_out_is_read_back_by_any_process(place: Place, journal: Journal) -> None:
    hand_out(journal, Handout(7, 1))
    another = Journal(place.open())
    assert another.handouts("run") == {Handout(7, 1)}
    for found, wanted in (
        (another.rows("run", Handout(7, 1)), rows(7)),
        (another.rows("run", Handout(7, 1), "reference"), rows(57)),
    ):
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            assert (found[name].dtype, found[name].tolist()) == (values.dtype, values.tolist())
    assert same(another.answer("run", Handout(7, 1)), answer(7))
    assert another.answer("run", Handout(7, 0)) is None


def test_nothing_is_handed_out_twice(journal: Journal) -> None:
    hand_out(journal, Handout(0, 0))
    assert not journal.create(journal.open("run"), Handout(0, 0), entry(Handout(0, 0), of=1))
    assert same(journal.answer("run", Handout(0, 0)), answer(0))


def test_cleared_away_rows_leave_their_answers(journal: Journal) -> None:
    hand_out(journal, *(Handout(step, rank) for step in range(4) for rank in (0, 1)))
    fallback = replace(answer(1), fallback="deadline", scores=np.empty(0, np.float32), learner_version=None)
    cleared = journal.clear("run", 3, 1 << 20, lambda handout: fallback if handout == Handout(1, 0) else None)
    assert cleared == {Handout(step, rank) for step in range(3) for rank in (0, 1)}
    assert journal.handouts("run") == {Handout(3, 0), Handout(3, 1)}
    with pytest.raises(FileNotFoundError):
        journal.rows("run", Handout(2, 0))
    for handout in cleared - {Handout(1, 0)}:
        assert same(journal.answer("run", handout), answer(handout.step))
    assert same(journal.answer("run", Handout(1, 0)), fallback)
    assert journal.clear("run", 3, 1 << 20, lambda handout: None) == set()


def test_answers_stay_within_their_bound_oldest_out(journal: Journal) -> None:
    for step in range(3):
        hand_out(journal, Handout(step, 0))
        journal.clear("run", step + 1, 1 << 20, lambda handout: None)
    sizes = [kept.total_bytes for kept in journal.kept("run")]
    hand_out(journal, Handout(3, 0))
    journal.clear("run", 4, sum(sizes[1:]) + 1, lambda handout: None)
    assert [kept.first_step for kept in journal.kept("run")] == [2, 3]
    assert journal.answer("run", Handout(1, 0)) is None
    assert same(journal.answer("run", Handout(3, 0)), answer(3))


def test_two_gateways_may_clear_away_at_once(place: Place, journal: Journal) -> None:
    hand_out(journal, Handout(0, 0), Handout(1, 0))
    another = Journal(place.open())
    another.clear("run", 1, 1 << 20, lambda handout: None)
    journal.clear("run", 2, 1 << 20, lambda handout: None)
    for step in (0, 1):
        assert same(another.answer("run", Handout(step, 0)), answer(step))


def test_a_journal_goes_with_its_run(place: Place, journal: Journal) -> None:
    hand_out(journal, Handout(0, 0))
    folder = journal.open("run")
    RunStore(place.open()).delete("run")
    assert journal.handouts("run") == set()
    assert journal.answer("run", Handout(0, 0)) is None
    with pytest.raises(FileNotFoundError):
        journal.create(folder, Handout(1, 0), entry(Handout(1, 0)))
    create_run(place.open())
    assert journal.handouts("run") == set()


def test_what_is_damaged_is_said_to_be(place: Place, journal: Journal) -> None:
    hand_out(journal, Handout(0, 0))
    whole = entry(Handout(0, 0))
    place.write(f"{place.versions('run', 'journal')}/{0:019d}-{0:05d}.safetensors", whole[:-8])
    for read in (journal.rows, journal.answer):
        with pytest.raises(InternalError, match="is damaged in the store"):
            read("run", Handout(0, 0))
    check_content(whole, "it")
    for content in (whole[:-8], b"", whole.replace(b"identity", b"identitx")):
        with pytest.raises(InternalError, match="it is damaged"):
            check_content(content, "it")

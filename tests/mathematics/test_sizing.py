"""The sizing of a service: enough, not one too many, and what follows from it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor_service.sizing import Measured, TrainerLoad, size

LOAD = TrainerLoad(super_batch=3072, sub_batch=1024, step_time_s=0.8, ranks=8)


def test_an_example_comes_out_as_on_paper() -> None:
    measured = Measured(
        6286, candidate_bytes=12_289, learner_bytes=5_000_000, reference_bytes=2_000_000, gateway_bytes_per_second=290e6
    )

    found = size(LOAD, measured, 0.8)

    # 24,576 candidates in 0.8 s; 30,720 / (6,286 · 0.8) = 6.1; 7 · 6,286 = 44,002.
    assert found.candidates_per_second == pytest.approx(30_720)
    assert found.scorers == 7
    assert found.utilisation == pytest.approx(30_720 / 44_002)
    assert found.headroom == pytest.approx(44_002 / 30_720 - 1)
    assert found.steps_per_second == pytest.approx(44_002 / 24_576)
    assert found.selection_s == pytest.approx(24_576 / 44_002)
    assert found.model_bytes == 12_000_000
    # 377.5 MB/s; over 232 MB/s 1.6.
    assert found.bytes_per_second == pytest.approx(377_518_080)
    assert found.gateways == 2
    assert (found.super_batch_bytes, found.window_bytes) == (37_751_808, 75_503_616)


@given(
    super_batch=st.integers(1, 100_000),
    ranks=st.integers(1, 64),
    step_time_s=st.floats(0.01, 100),
    rate=st.floats(1, 1e6),
    utilisation=st.floats(0.05, 1),
)
def test_the_scorers_keep_up_within_their_share_of_time_and_one_less_would_not(
    super_batch: int, ranks: int, step_time_s: float, rate: float, utilisation: float
) -> None:
    found = size(TrainerLoad(super_batch, 1, step_time_s, ranks), Measured(rate), utilisation)

    def busy_s(scorers: int) -> float:
        """Seconds that each works for one step of all ranks."""
        return ranks * super_batch / scorers / rate

    assert busy_s(found.scorers) <= utilisation * step_time_s * (1 + 1e-9)
    assert found.scorers == 1 or busy_s(found.scorers - 1) > utilisation * step_time_s * (1 - 1e-9)
    assert found.utilisation <= utilisation * (1 + 1e-9)
    assert found.steps_per_second * step_time_s >= 1 - 1e-9


@pytest.mark.parametrize("scorers", range(1, 200))
def test_what_fits_exactly_is_not_rounded_up(scorers: int) -> None:
    load = TrainerLoad(super_batch=scorers * 80, sub_batch=1, step_time_s=0.1)

    assert size(load, Measured(1000), 0.8).scorers == scorers


def test_what_is_not_known_stays_unknown() -> None:
    found = size(LOAD, Measured(100, gateway_bytes_per_second=1e6))

    assert (found.model_bytes, found.bytes_per_second, found.gateways, found.window_bytes) == (None,) * 4
    assert size(LOAD, Measured(100, candidate_bytes=10)).gateways is None
    assert size(LOAD, Measured(100, learner_bytes=10)).model_bytes is None


def test_a_score_without_a_reference_needs_no_room_for_it() -> None:
    assert size(LOAD, Measured(100, learner_bytes=10, reference_bytes=0)).model_bytes == 20


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((0, 1, 1.0, 1), "super_batch is 0; it must be 1 or above"),
        ((4, 0, 1.0, 1), "sub_batch is 0; it must be 1 or above"),
        ((4, 5, 1.0, 1), "sub_batch is 5; it is chosen from a super_batch of 4"),
        ((4, 1, 0.0, 1), "step_time_s is 0; it must be above 0, and finite"),
        ((4, 1, math.inf, 1), "step_time_s is inf; it must be above 0, and finite"),
        ((4, 1, 1.0, 0), "ranks is 0; it must be 1 or above"),
    ],
)
def test_a_load_out_of_range_is_named(arguments: tuple[int, int, float, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TrainerLoad(*arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("candidates_per_second", 0.0),
        ("candidates_per_second", math.nan),
        ("candidate_bytes", 0),
        ("learner_bytes", -1),
        ("reference_bytes", -1),
        ("gateway_bytes_per_second", math.inf),
    ],
)
def test_a_measurement_out_of_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value:g}; it must be"):
        Measured(**{"candidates_per_second": 1.0, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("utilisation", [0.0, 1.01, math.nan])
def test_a_share_of_time_out_of_range_is_named(utilisation: float) -> None:
    with pytest.raises(ValueError, match=f"target_utilisation is {utilisation:g}; it must be above 0 and at most 1"):
        size(LOAD, Measured(1), utilisation)

"""The short form of `resume`: a killed service and a trainer from its checkpoint change no byte; on Ray, too."""

from __future__ import annotations

import pytest

from tests.reliability import resume


@pytest.mark.long
def test_nothing_differs_after_kills_of_a_service_without_ray() -> None:
    figures, _ = resume.run(short=True)
    assert [figure for figure in figures if figure.is_missed] == []
    assert {figure.name: figure.value for figure in figures}["trainers that went on from a checkpoint"] >= 1


@pytest.mark.ray
@pytest.mark.long
def test_nothing_differs_after_kills_of_scorers_and_gateways() -> None:
    figures, _ = resume.run(short=True, count=48, layouts=resume.ON_RAY[1:2])
    assert [figure for figure in figures if figure.is_missed] == []

"""What a crowd of trainers asks of one run is looked at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from threading import Event
from typing import Any

import pytest
from torch import nn

from preceptor import RunSpec
from preceptor.errors import InvalidRunError
from preceptor_service.checked_specs import SpecChecker
from preceptor_service.config import ServiceConfig
from preceptor_service.method_registry import MethodRegistry
from preceptor_service.models import ArchitectureRegistry

SPEC = RunSpec("digits", "small_cnn", {"in_channels": 1, "image_size": 8, "num_classes": 4, "width": 2})
WAIT_S = 30.0


class GatedArchitectures(ArchitectureRegistry):
    """Counts how often a model is outlined, and holds it until `open` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.outlined = 0
        self.open = Event()

    def outline(self, architecture: str, config: Mapping[str, Any]) -> nn.Module:
        self.outlined += 1
        assert self.open.wait(WAIT_S)
        return super().outline(architecture, config)


@pytest.fixture
def architectures() -> GatedArchitectures:
    return GatedArchitectures()


@pytest.fixture
def checker(architectures: GatedArchitectures) -> SpecChecker:
    return SpecChecker(ServiceConfig(), MethodRegistry(), architectures)


async def _asked(checker: SpecChecker, *specs: RunSpec) -> list[asyncio.Task[Any]]:
    asked = [asyncio.create_task(checker.check(spec)) for spec in specs]
    await asyncio.sleep(0)  # each of them has begun
    return asked


def test_whoever_asks_meanwhile_gets_the_same(checker: SpecChecker, architectures: GatedArchitectures) -> None:
    async def story() -> None:
        asked = await _asked(checker, *[SPEC] * 8)
        architectures.open.set()
        first, *others = await asyncio.gather(*asked)
        assert all(other is first for other in others)
        assert [column.name for column in first.columns] == ["image", "label"]
        assert first.flops.learner_copy > 0

    asyncio.run(story())
    assert architectures.outlined == 1


def test_other_settings_of_the_same_name_are_looked_at_by_themselves(
    checker: SpecChecker, architectures: GatedArchitectures
) -> None:
    wider = replace(SPEC, model_config={**SPEC.model_config, "width": 4})

    async def story() -> None:
        asked = await _asked(checker, SPEC, wider, SPEC)
        architectures.open.set()
        narrow, wide, again = await asyncio.gather(*asked)
        assert narrow.flops == again.flops
        assert wide.flops.learner_copy > narrow.flops.learner_copy

    asyncio.run(story())


def test_who_leaves_takes_nothing_from_the_others(checker: SpecChecker, architectures: GatedArchitectures) -> None:
    async def story() -> None:
        leaving, staying = await _asked(checker, SPEC, SPEC)
        leaving.cancel()
        architectures.open.set()
        assert (await staying).columns

    asyncio.run(story())
    assert architectures.outlined == 1


def test_what_is_wrong_is_told_to_each_and_looked_at_again(
    checker: SpecChecker, architectures: GatedArchitectures
) -> None:
    architectures.open.set()

    async def story() -> None:
        for _ in range(2):
            asked = await _asked(checker, *[replace(SPEC, model="nothing")] * 2)
            for found in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(found, InvalidRunError)

    asyncio.run(story())
    assert architectures.outlined == 2

"""Reported metrics in the store: nothing that was answered is lost, whoever writes at once, wherever it lies."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from preceptor.errors import ResourceExhaustedError, RunNotFoundError
from preceptor.runs import RunSpec
from preceptor_service.reported_metrics import MAX_NAMES, MAX_POINTS, ReportedMetrics, _checksum, _to_json
from preceptor_service.run_store import RunRecord, RunStore
from preceptor_service.storage import Storage
from tests.stores import Place


def record_of(storage: Storage, create_time_s: float = 1.0) -> RunRecord:
    return RunStore(storage).create(RunRecord(RunSpec("run", model="small_cnn"), create_time_s, 16))


def test_writers_at_once_lose_nothing_and_leave_one_piece_in_the_end(place: Place) -> None:
    storage = place.open()
    record = record_of(storage)
    writers = [ReportedMetrics(place.open()) for _ in range(3)]
    with ThreadPoolExecutor(len(writers)) as threads:
        for _ in threads.map(
            lambda number: writers[number % 3].report(record, number, {"acc": number / 10}), range(30)
        ):
            pass
    writers[0].report(record, 30, {"acc": 3.0})
    found = ReportedMetrics(place.open()).read("run")
    assert found.series == {"acc": {step: step / 10 for step in range(31)}}
    assert found.damaged_pieces == 0
    assert len([name for name in place.names("runs/run") if "/reported/" in f"/{name}"]) == 1


def test_a_writer_that_is_cut_off_before_it_tidies_up_leaves_the_same_to_read(place: Place) -> None:
    class Cut(ReportedMetrics):
        def _remove(self, folder: str, pieces: Any) -> None:
            raise KeyboardInterrupt

    storage = place.open()
    record, whole = record_of(storage), ReportedMetrics(storage)
    whole.report(record, 1, {"acc": 0.1})
    with pytest.raises(KeyboardInterrupt):
        Cut(storage).report(record, 2, {"acc": 0.2})
    assert whole.read("run").series == {"acc": {1: 0.1, 2: 0.2}}
    whole.report(record, 2, {"acc": 0.3})
    assert whole.read("run").series == {"acc": {1: 0.1, 2: 0.3}}


def test_nothing_is_written_to_another_life_of_the_run(place: Place) -> None:
    storage = place.open()
    former, metrics = record_of(storage), ReportedMetrics(storage)
    metrics.report(former, 1, {"acc": 0.1})
    RunStore(storage).delete("run")
    with pytest.raises(RunNotFoundError):
        metrics.report(former, 2, {"acc": 0.2})
    latter = record_of(storage, create_time_s=2.0)
    with pytest.raises(RunNotFoundError):
        metrics.report(former, 3, {"acc": 0.3})
    metrics.report(latter, 4, {"acc": 0.4})
    assert metrics.read("run").series == {"acc": {4: 0.4}}


def test_a_run_that_is_made_anew_while_it_is_written_gets_nothing_of_it(place: Place) -> None:
    class Replaced(ReportedMetrics):
        def _read(self, folder: str) -> Any:
            found = super()._read(folder)
            RunStore(storage).delete("run")
            record_of(storage, create_time_s=2.0)
            storage.open_versions("run", "reported")
            return found

    storage = place.open()
    former = record_of(storage)
    with pytest.raises(RunNotFoundError):
        Replaced(storage).report(former, 1, {"acc": 0.1})
    assert ReportedMetrics(storage).read("run").series == {}


def test_names_that_are_no_pieces_are_not_looked_at(place: Place) -> None:
    storage = place.open()
    record, metrics = record_of(storage), ReportedMetrics(storage)
    metrics.report(record, 1, {"acc": 0.1})
    place.write(f"{place.versions('run', 'reported')}/notes.txt", b"x")
    metrics.report(record, 2, {"acc": 0.2})
    assert metrics.read("run").series == {"acc": {1: 0.1, 2: 0.2}}
    assert metrics.read("nobody").series == {}


def test_as_many_values_as_a_run_may_have_take_about_two_megabytes(place: Place) -> None:
    storage = place.open()
    record, steps = record_of(storage), MAX_POINTS // MAX_NAMES
    names = [f"m{name}".ljust(64, "x") for name in range(MAX_NAMES)]
    points = {(name, step): (2**50, step / 7) for name in names for step in range(steps)}
    content = _to_json(points)
    assert len(content) < 2_500_000
    place.write(f"{storage.open_versions('run', 'reported')}/{_checksum(content)}.json", content)
    metrics = ReportedMetrics(storage)
    with pytest.raises(ResourceExhaustedError):
        metrics.report(record, steps, dict.fromkeys(names, 1.0))
    metrics.report(record, 0, {names[0]: 9.0})
    found = metrics.read("run").series[names[0]]
    assert (found[0], found[1], len(found)) == (9.0, 1 / 7, steps)

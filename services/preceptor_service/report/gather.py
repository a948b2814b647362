"""What a report is made from: the service's answers, the run's ledger and the user's own data."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preceptor import MetricSeries, Run, RunStatus, SelectionClient
from preceptor.errors import LedgerOffError, StepsNotKeptError
from preceptor_service.reference.errors import JobError
from preceptor_service.report.example_data import DataFiles, ExampleData, read_examples
from preceptor_service.report.selections import Selections, read_selections
from preceptor_service.uplift import Series

SHOWN = 12
"""Examples that were selected most, and as many that were selected least."""


@dataclass(frozen=True)
class Reported:
    """A run and what its trainer measured."""

    status: RunStatus
    metrics: Mapping[str, Series]

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.status.spec.run_id


@dataclass(frozen=True)
class Material:
    """All that a page shows.

    Attributes:
        runs: the run that the page is about, then the same with other seeds.
        twins: a uniform one for each of them, in that order; none where there is no such comparison.
        selections: of the first run; None where it has no ledger, or an empty one, and `no_ledger` says why.
        damaged: pieces of its ledger that are missing, a sentence each.
        shown: ids of the examples that were selected most, and least.
        data: what the user's data knows of the examples; None where none was given.
    """

    runs: Sequence[Reported]
    twins: Sequence[Reported]
    selections: Selections | None
    no_ledger: str | None = None
    damaged: Sequence[str] = ()
    shown: tuple[Sequence[int], Sequence[int]] = ((), ())
    data: ExampleData | None = None


def gather(
    client: SelectionClient,
    run_ids: Sequence[str],
    twin_ids: Sequence[str],
    files: DataFiles | None,
    timeout_s: float = 600.0,
) -> Material:
    """Asks the service for all that it knows, and reads `files`. The ledger is in a file here meanwhile.

    Raises:
        JobError: twins do not fit the runs, or `files` cannot be used.
        PreceptorError: what the service says.
    """
    if twin_ids and len(twin_ids) != len(run_ids):
        raise JobError(f"{len(run_ids)} runs and {len(twin_ids)} twins were named; give a --twin for each run, or none")
    runs, twins = ([_reported(client.get_run(name)) for name in names] for names in (run_ids, twin_ids))
    for run, twin in zip(runs, twins, strict=False):
        _check_twin(run.status, twin.status)
    with tempfile.TemporaryDirectory(prefix="preceptor-report-") as folder:
        ledger = Path(folder) / "ledger.parquet"
        try:
            written = client.get_run(run_ids[0]).export_ledger(ledger, timeout_s=timeout_s)
        except (LedgerOffError, StepsNotKeptError) as error:
            return Material(runs, twins, None, str(error))
        selections = read_selections(ledger, runs[0].status.spec)
    if selections.examples is None:
        return Material(runs, twins, selections, damaged=written.damaged)
    ranked = selections.examples.ranked().tolist()
    most = ranked[:SHOWN]
    least = ranked[max(len(most), len(ranked) - SHOWN) :][::-1]
    shown = [selections.examples.ids[place].as_py() for place in (*most, *least)]
    data = None if files is None else read_examples(files, selections.examples, shown)
    return Material(runs, twins, selections, None, written.damaged, (most, least), data)


def _reported(run: Run) -> Reported:
    return Reported(run.status(), {name: _series(found) for name, found in sorted(run.metrics().items())})


def _series(found: MetricSeries) -> Series:
    return Series(found.steps.astype(np.int64), found.values.astype(np.float64))


def _check_twin(run: RunStatus, twin: RunStatus) -> None:
    if twin.spec.score != "uniform":
        raise JobError(
            f"run {twin.spec.run_id!r} has score {twin.spec.score!r} and is no twin; name one with score 'uniform' "
            f"that trained like {run.spec.run_id!r}"
        )

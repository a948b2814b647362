"""`python -m benchmarks.learning [experiment …]`: does what is missing of the experiments, and writes docs/results.md.

Ctrl-C leaves at once and loses the run under way; the same command goes on. Started several times, it shares the work.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.learning import identity, report
from benchmarks.learning.experiments import EXPERIMENTS, Experiment
from benchmarks.learning.ladder import Results, climb
from benchmarks.learning.settings import Training
from benchmarks.learning.training import train
from preceptor import PreceptorError
from preceptor_service.reference.demo_data import DataMissingError

IDENTITY = "identity"
"""The comparison with RHO-LOSS's rule, which trains no arms."""

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was asked for; returns 0, 1 where data is missing or the service refused, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    results = Results(options.work / "smoke.jsonl" if options.smoke else report.RUNS)
    names = options.names or (*(name for name, each in EXPERIMENTS.items() if _is_possible(each)), IDENTITY)
    chosen = [EXPERIMENTS[name] for name in names if name != IDENTITY]
    if options.smoke:
        chosen = [experiment.smoke() for experiment in chosen]
    for experiment in chosen:
        if not _is_possible(experiment):
            console.print(f"learning: {experiment.name} needs the package {experiment.package}", style="red")
            return 1
    wanted = [run for experiment in chosen for run in experiment.runs()]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        climb(wanted, results, lambda run: train(run, options.work), options.work / "claims", _Watch(console))
        if IDENTITY in names:
            console.print(identity.table(identity.run(options.smoke, options.work)), markup=False)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on")
        return _INTERRUPTED
    except (DataMissingError, PreceptorError) as error:
        console.print(f"learning: {error}", style="red", markup=False)
        return 1
    _show(chosen, results, console)
    if not options.smoke:
        report.write(results)
    return 0


def _is_possible(experiment: Experiment) -> bool:
    return experiment.package is None or importlib.util.find_spec(experiment.package) is not None


class _Watch:
    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, number: int, count: int, settings: Training, outcome: dict[str, Any] | None) -> None:
        selection = settings.selection
        arm = "uniform" if selection is None else f"{selection.score}, {selection.selector}"
        where = f"{datetime.now(UTC):%H:%M} [{number}/{count}] {settings.data.builder}: {arm}, seed {settings.seed}"
        if outcome is None:
            self._console.print(f"{where}, {settings.updates} updates …", markup=False)
        else:
            _, quality, *_ = outcome["curve"][-1]
            self._console.print(f"    validation {quality:.4f}, noise {outcome['noise_share']:.1%}", markup=False)


def _show(chosen: Sequence[Experiment], results: Results, console: Console) -> None:
    for experiment in chosen:
        console.print(f"\n{experiment.name}\n{report.table(experiment, results)}", markup=False, soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.learning", description="Train with and without selection, at a ladder of budgets."
    )
    parser.add_argument(
        "names",
        nargs="*",
        choices=[[], *EXPERIMENTS, IDENTITY],
        metavar="experiment",
        help="default: all that need nothing more than our own packages",
    )
    parser.add_argument("--smoke", action="store_true", help="a form of seconds; writes nothing but into --work")
    parser.add_argument("--work", type=Path, default=Path("learning-out"), help="folder of references (learning-out)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

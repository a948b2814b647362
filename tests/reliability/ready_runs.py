"""`python -m tests.reliability.ready_runs TARGET RUN…`: creates runs and pushes their first weights, from any host."""

from __future__ import annotations

import sys

from preceptor import SelectionClient
from tests.ray.candidates import state
from tests.reliability.reference_run import learner_of, settings_of


def main(target: str, *run_ids: str) -> None:
    """Makes every run ready to select."""
    with SelectionClient(target, timeout_s=60) as client:
        for run_id in run_ids:
            run = client.create_run(settings_of(run_id))
            run.push_reference(state("reference"))
            run.push_weights(learner_of(0), step=0)


if __name__ == "__main__":
    main(*sys.argv[1:])

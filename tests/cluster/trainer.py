"""A trainer on a host of its own: selects, as if it trained in between, and says what it got, a line of JSON per step.

    python -m tests.cluster.trainer TARGET RUN_ID RANK [ready | push]

With `ready` it creates the run and pushes the weights first, `learner-1` as version 1; with `push` it pushes
`learner-2`. It ends at the end of its standard input.
"""

from __future__ import annotations

import json
import sys
import threading

from preceptor import SelectionClient
from tests.ray.candidates import COUNT, expected, ready_run, spec, state, super_batch

STEP_S = 0.03
"""Of training: all hosts share the cores of one machine, and what starts on one of them needs some too."""


def main(target: str, run_id: str, rank: str, *options: str) -> None:
    """Selects until standard input ends."""
    settings = spec(run_id)
    is_over = threading.Event()
    threading.Thread(target=_wait_for_end, args=(is_over,), daemon=True).start()
    with SelectionClient(target, timeout_s=90) as client:
        run = ready_run(client, settings) if "ready" in options else client.get_run(run_id)
        if "push" in options:
            run.push_weights(state("learner-2"), step=1)
        step = 0
        while not is_over.wait(STEP_S):
            selection = run.select(super_batch(step), COUNT, step=step, rank=int(rank))
            version = selection.learner_version
            told = {
                "step": step,
                "is_right": selection.indices.tolist() == expected(settings, step, f"learner-{version}", int(rank)),
                "is_fallback": selection.is_fallback,
                "version": version,
                "rescored": selection.timings.rescored_micro_batches,
            }
            sys.stdout.write(f"{json.dumps(told)}\n")
            sys.stdout.flush()
            step += 1


def _wait_for_end(is_over: threading.Event) -> None:
    sys.stdin.read()
    is_over.set()


if __name__ == "__main__":
    main(*sys.argv[1:])

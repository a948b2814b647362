"""A trainer on a host of its own: selects without a pause and says what it got, a line of JSON per step.

    python -m tests.cluster.trainer TARGET RUN_ID [ready]

With `ready` it creates the run and pushes the weights first. It ends at the end of its standard input.
"""

from __future__ import annotations

import json
import sys
import threading

from preceptor import SelectionClient
from tests.ray.candidates import COUNT, expected, ready_run, spec, super_batch


def main(target: str, run_id: str, *options: str) -> None:
    """Selects until standard input ends."""
    settings = spec(run_id)
    is_over = threading.Event()
    threading.Thread(target=_wait_for_end, args=(is_over,), daemon=True).start()
    with SelectionClient(target, timeout_s=90) as client:
        run = ready_run(client, settings) if "ready" in options else client.get_run(run_id)
        step = 0
        while not is_over.is_set():
            selection = run.select(super_batch(step), COUNT, step=step)
            told = {
                "step": step,
                "is_right": selection.indices.tolist() == expected(settings, step),
                "is_fallback": selection.is_fallback,
                "version": selection.learner_version,
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

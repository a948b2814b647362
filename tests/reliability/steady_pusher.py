"""`python -m tests.reliability.steady_pusher JSON`: pushes one run's learner, again and again.

Started again, it goes on above the step that the service knows. Commits and failures go to `<folder>/<run>.pushes`.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path

from preceptor import SelectionClient
from preceptor.errors import PreceptorError
from tests.reliability.reference_run import learner_of, settings_of

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Pusher:
    """Whose learner is pushed, where to and how often."""

    run_id: str
    target: str
    folder: str
    pause_s: float

    @property
    def pushes(self) -> Path:
        """JSON lines: `version` and `step` of what was acknowledged, or `error`."""
        return Path(self.folder) / f"{self.run_id}.pushes"

    @property
    def command(self) -> list[str]:
        """What runs it."""
        return [sys.executable, "-m", "tests.reliability.steady_pusher", json.dumps(asdict(self))]


def main(pusher: Pusher) -> None:
    """Pushes until its input ends."""
    stop = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    with SelectionClient(pusher.target, timeout_s=TIMEOUT_S) as client, pusher.pushes.open("a") as file:
        run = client.create_run(settings_of(pusher.run_id))
        step = (run.status().learner_step or 0) + 1
        while not stop.is_set():
            try:
                pushed = run.push_weights(learner_of(step), step=step)
                told: dict[str, int | str] = {"version": pushed.version, "step": step}
                step += 1
            except PreceptorError as error:
                told = {"error": f"{type(error).__name__}: {error}"}
                step += 1  # it may have been committed
            file.write(json.dumps(told) + "\n")
            file.flush()
            stop.wait(pusher.pause_s)


if __name__ == "__main__":
    main(Pusher(**json.loads(sys.argv[1])))

"""`python -m examples.demo`: the demo's command line."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo; returns the exit code: 0, 1 where something is missing or failed, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    console = Console()
    complaints = Console(stderr=True, style="red", highlight=False, markup=False, soft_wrap=True)
    with console.status("loading …"):
        from examples.demo import comparison
        from preceptor import PreceptorError
        from preceptor_service.config import ConfigError
        from preceptor_service.reference.demo_data import DataMissingError
    # So far nothing was started, and Ctrl-C just ended the process. From here on there is something to stop.
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        comparison.run(options.data, options.seed, options.updates, options.pool, options.push, options.out, console)
    except KeyboardInterrupt:
        complaints.print("demo: interrupted")
        return _INTERRUPTED
    except (DataMissingError, ConfigError, PreceptorError) as error:
        complaints.print(f"demo: {error}")
        return 1
    return 0


def _interrupt(*_: object) -> None:
    """Breaks off what is going on, and lets no second Ctrl-C break off the tidying up, which Ray ends at exit."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="demo", description="Train on noisy images with and without selection, through a service started here."
    )
    parser.add_argument("--data", choices=("digits", "fashion-mnist"), default="digits")
    parser.add_argument("--seed", type=_whole(0), default=0, help="of data, weights, order and selection (0)")
    parser.add_argument("--updates", type=_whole(1), help="optimiser steps of each arm (400; fashion-mnist: 800)")
    parser.add_argument("--pool", choices=("ray", "in-process"), default="ray", help="who runs the scorers (ray)")
    parser.add_argument("--push", action="store_true", help="train the online model in the trainer, and push it")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the picture (demo-out)")
    return parser


def _whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small; give {least} or more")
        return value

    return parse


if __name__ == "__main__":
    # Nothing is started yet, so Ctrl-C may end the process at once, without a traceback from some import.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())

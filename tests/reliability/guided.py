"""Coverage-guided fuzzing of the decoders: `python -m tests.reliability.guided SURFACE CORPUS [options of libFuzzer]`.

Needs atheris. Starts from valid inputs and from those that once were trouble. What ends the process, or would be
answered INTERNAL, libFuzzer leaves as a file in the working directory; it belongs into `corpus/SURFACE`, whose files
are read by a test.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from preceptor_service import super_batch
from preceptor_service.models import manifest
from tests.reliability.bodies import COLUMNS, ROWS, arrow_seeds, weights_file
from tests.reliability.decoders import read_arrow, read_weights

CORPUS = Path(__file__).with_name("corpus")


def readers(folder: Path) -> Mapping[str, Callable[[bytes], set[str]]]:
    """What reads an input, by surface, to the status codes that it would be answered with."""
    return {
        "arrow": lambda data: {read_arrow(data, position, ROWS) for position in range(len(COLUMNS))},
        "safetensors": lambda data: {read_weights(folder / "weights", data)},
    }


def main(surface: str, corpus: Path, options: list[str]) -> None:
    """Fuzzes until libFuzzer's options say that it is enough."""
    import atheris

    corpus.mkdir(parents=True, exist_ok=True)
    seeds = [body for body, _ in arrow_seeds()] if surface == "arrow" else [weights_file()]
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    for module in (super_batch, manifest):
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                atheris.instrument_func(function)
    with tempfile.TemporaryDirectory() as folder:
        read = readers(Path(folder))[surface]

        def one(data: bytes) -> None:
            if wrong := read(data) - {"OK", "INVALID_ARGUMENT"}:
                raise RuntimeError(f"answered {wrong}")

        atheris.Setup([sys.argv[0], str(corpus), str(CORPUS / surface), *options], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])

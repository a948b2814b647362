"""The decoders of what trainers send, run as they are: `python -m tests.reliability.decoders NAME SEED FIRST COUNT`.

Run as a program, a process that a crash may end: it leaves the number of the case under way in a file, and tells
what came of each thousand on standard output, as JSON lines.
"""

from __future__ import annotations

import json
import mmap
import random
import resource
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from preceptor.errors import InvalidSuperBatchError, InvalidWeightsError
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.models.manifest import check_weights
from preceptor_service.super_batch import decode
from tests.reliability.bodies import COLUMNS, arrow_case, weights_case
from tests.reliability.mutation import case_random
from tests.service import digits

_TOLD_EVERY = 1000
_SHOWN = 5


@dataclass(frozen=True)
class Decoder:
    """A decoder and what it is given.

    Attributes:
        case: from the generator of a case to the arguments of `read`.
        read: returns the status code that the gateway would answer with; anything raised would be INTERNAL.
    """

    case: Callable[[random.Random], tuple[Any, ...]]
    read: Callable[..., str]


def read_arrow(body: bytes, position: int, rows: int) -> str:
    """Reads a body as the gateway does, and touches every value of it."""
    try:
        batch = decode(body, COLUMNS[position], rows)
        if batch.example_id is not None:
            batch.folds()
    except InvalidSuperBatchError as error:
        return _judged(error)
    for micro_batch in batch.micro_batches(4):
        for values in micro_batch.columns.values():
            values.sum()
    return "OK"


def read_weights(path: Path, content: bytes) -> str:
    """Reads a safetensors file as the gateway does."""
    path.write_bytes(content)
    try:
        check_weights(path, _OUTLINE)
    except InvalidWeightsError as error:
        return _judged(error, str(path))
    return "OK"


def _judged(error: InvalidSuperBatchError | InvalidWeightsError, *secrets: str) -> str:
    return "INTERNALS SHOWN" if shows_internals(str(error), *secrets) else error.code


def shows_internals(text: str, *secrets: str) -> bool:
    """Whether an error text says where the service lies, or what its code looks like."""
    return any(sign in text for sign in ("Traceback", 'File "', ".py", ".cc", ".rs", "0x7", *secrets))


def decoders(folder: Path) -> dict[str, Decoder]:
    """Every decoder by its surface."""
    return {
        "arrow": Decoder(arrow_case, read_arrow),
        "safetensors": Decoder(lambda rng: (folder / "weights", weights_case(rng)), read_weights),
    }


_OUTLINE = ArchitectureRegistry().outline("small_cnn", digits.MODEL)


def main(name: str, seed: int, first: int, count: int, under_way: Path) -> None:
    """Decodes the cases from `first` on."""
    with under_way.open("r+b") as file, tempfile.TemporaryDirectory() as folder:
        mark = mmap.mmap(file.fileno(), 8)
        decoder = decoders(Path(folder))[name]
        codes: Counter[str] = Counter()
        samples: list[str] = []
        base = 0
        for number in range(first, first + count):
            mark[:8] = struct.pack("<q", number)
            case = decoder.case(case_random(name, seed, number))
            try:
                code = decoder.read(*case)
            except Exception:  # noqa: BLE001 - counted: the gateway would answer INTERNAL
                code = "INTERNAL"
                samples.append(f"case {number}: {traceback.format_exc(limit=-2)}")
            codes[code] += 1
            if (number + 1 - first) % _TOLD_EVERY == 0 or number + 1 == first + count:
                base = base or psutil.Process().memory_info().rss
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                told = {"codes": codes, "samples": samples[:_SHOWN], "grown": max(peak - base, 0), "next": number + 1}
                sys.stdout.write(json.dumps(told) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))

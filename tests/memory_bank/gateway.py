"""A gateway's process that dies in the middle of an operation: `python -m tests.memory_bank.gateway DIRECTORY WHEN`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from preceptor_service.config import WeightsConfig
from preceptor_service.run_store import RunStore
from preceptor_service.storage import open_storage
from tests.memory_bank.acting import asked, draw_from, opened, remember

DIED = 9


def main() -> None:
    """Puts eight examples in, and dies `before` or `after` the commit of a sample of three."""
    folder, when = sys.argv[1:]
    storage = open_storage(WeightsConfig(path=Path(folder)))
    record = RunStore(storage).read("run")
    bank = opened(storage, record)
    remember(bank, record, asked(0, list(range(8)), [1.0] * 8))
    link = os.link

    def deadly(source: Any, target: Any) -> None:
        if when == "after":
            link(source, target)
        os._exit(DIED)

    os.link = deadly  # type: ignore[assignment]
    draw_from(bank, record, 3, 7)


if __name__ == "__main__":
    main()

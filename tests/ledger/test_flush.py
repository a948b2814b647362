"""Those who ask for what waits while the store hangs share one flush, and have all that was kept before they asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

from preceptor_service.config import LedgerConfig, WeightsConfig
from preceptor_service.ledger.ledger import Ledger
from preceptor_service.ledger.ledger_store import Batch, LedgerStore, Written
from preceptor_service.metrics import GatewayMetrics
from preceptor_service.storage import open_storage
from tests.ledger.test_ledger_store import entry, record_of, steps_of


class HangingStore(LedgerStore):
    """Writes once `goes_on` is set."""

    goes_on = threading.Event()

    def write(self, batches: Sequence[Batch]) -> Written:
        assert self.goes_on.wait(20)
        return super().write(batches)


def test_however_many_ask_while_the_store_hangs_two_flushes_are_under_way(tmp_path: Path) -> None:
    storage = open_storage(WeightsConfig(path=str(tmp_path)))
    store, record = HangingStore(storage, LedgerConfig()), record_of("run", storage)

    async def ask() -> None:
        ledger = Ledger(store, LedgerConfig(), GatewayMetrics())
        ledger.keep(record, entry(1))
        for _ in range(30):
            await ledger.flush(timeout_s=0.001)
        assert len(asyncio.all_tasks() - {asyncio.current_task()}) == 2
        ledger.keep(record, entry(2))
        asked = [asyncio.create_task(ledger.flush(timeout_s=20.0)) for _ in range(3)]
        await asyncio.sleep(0)
        store.goes_on.set()
        await asyncio.gather(*asked)
        assert steps_of(store, "run") == [1, 2]

    asyncio.run(ask())

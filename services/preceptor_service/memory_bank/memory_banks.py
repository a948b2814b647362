"""`MemoryBanks`: the banks of all runs, as one gateway answers for them. Called by `MemoryBankService`."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from preceptor.errors import DeadlineExceededError, PreceptorError, UnavailableError
from preceptor.runs import MemoryBank
from preceptor_service.config import MemoryBankConfig
from preceptor_service.drawing import Draw
from preceptor_service.memory_bank.bank import Bank, Done, Key, Put, Sample, put, sample, sample_name
from preceptor_service.memory_bank.bank_store import Answer, OpenBank
from preceptor_service.run_store import RunRecord
from preceptor_service.selectors import Selector
from preceptor_service.storage import Storage

_THREADS = 4
"""Of their own, so that a store that hangs holds up nothing but banks."""
_STOP_S = 10.0

T = TypeVar("T")
_Life = tuple[str, float]


@dataclass
class _Held:
    """A bank in memory. `lock` is held as long as a thread works on it, whoever waits for that thread."""

    opened: OpenBank
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class MemoryBanks:
    """Banks by run, at most `max_bytes` of them in memory beside the one in use. Lives on one event loop; owns threads.

    Each bank does one thing at a time, in order of arrival. What a thread began it ends, even where the caller's
    deadline has passed: an operation happens once, and whoever repeats it gets its answer.
    """

    def __init__(self, storage: Storage, settings: MemoryBankConfig) -> None:
        self._storage = storage
        self._settings = settings
        self._held: OrderedDict[_Life, _Held] = OrderedDict()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="memory-bank")
        self._work: set[asyncio.Future[Any]] = set()

    async def find_put(self, record: RunRecord, key: Key, identity: str, deadline: float) -> Put | None:
        """Returns what was put in under that name, where that is known here; see `OpenBank.find`.

        Raises:
            DeadlineExceededError: the store did not answer before `deadline`, of the event loop's clock.
            PreceptorError: as `OpenBank.find`.
        """
        return await self._on_thread(record, lambda opened, _: opened.find(key, identity, Put), deadline)

    async def put(
        self,
        record: RunRecord,
        asked: Put,
        settings: MemoryBank,
        deadline: float,
        tell: Callable[[Answer[Put]], None],
    ) -> Answer[Put]:
        """Puts a scored super-batch into the bank once, durably; tells of it, also where nobody waits for it any more.

        Raises:
            DeadlineExceededError: it was not done before `deadline`, of the event loop's clock; it may be afterwards.
            PreceptorError: as `OpenBank.operate` and `bank.put`.
        """

        def work_out(bank: Bank) -> Done[Put]:
            return put(bank, asked, settings)

        return await self._on_thread(
            record,
            lambda opened, until: opened.operate(asked.key, asked.identity, Put, work_out, until),
            deadline,
            tell,
        )

    async def sample(
        self,
        record: RunRecord,
        selector: Selector,
        settings: MemoryBank,
        draw: Draw,
        deadline: float,
        tell: Callable[[Answer[Sample]], None],
    ) -> Answer[Sample]:
        """Samples a sub-batch once, durably; tells of it as `put`. Errors as `put`, and those of `bank.sample`."""
        key, identity = sample_name(draw)

        def work_out(bank: Bank) -> Done[Sample]:
            return sample(bank, record.spec, selector, settings, draw)

        return await self._on_thread(
            record, lambda opened, until: opened.operate(key, identity, Sample, work_out, until), deadline, tell
        )

    def forget(self, run_id: str) -> None:
        """Drops from memory what is held of a run that is gone."""
        for life in [life for life in self._held if life[0] == run_id]:
            del self._held[life]

    async def stop(self) -> None:
        """Lets threads end what they do, for at most 10 s."""
        if self._work:
            await asyncio.wait(self._work, timeout=_STOP_S)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _on_thread(
        self,
        record: RunRecord,
        call: Callable[[OpenBank, float], T],
        deadline: float,
        tell: Callable[[T], None] | None = None,
    ) -> T:
        held = self._of(record)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(deadline):
                await held.lock.acquire()
                until = time.monotonic() + deadline - loop.time()
                work = self._begun(held, lambda: _called(call, held.opened, until), tell)
                answer = await asyncio.shield(work)
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"the store did not answer for the bank of run {record.spec.run_id!r} in time; repeat the step, what "
                "was done meanwhile is not done again"
            ) from error
        self._write_snapshot_where_due(held)
        return answer

    def _begun(self, held: _Held, call: Callable[[], T], tell: Callable[[T], None] | None = None) -> asyncio.Future[T]:
        """Starts `call` on a thread; the lock, which is held, goes when it ends. Then tells what came out of it."""
        work = asyncio.get_running_loop().run_in_executor(self._threads, call)

        def ended(done: asyncio.Future[T]) -> None:
            held.lock.release()
            self._work.discard(work)
            self._drop_some(held)
            # Whoever asked may have gone, and repeats find it done: this is the one time to tell.
            if not done.cancelled() and done.exception() is None and tell is not None:
                tell(done.result())

        self._work.add(work)
        work.add_done_callback(ended)
        return work

    def _write_snapshot_where_due(self, held: _Held) -> None:
        if held.opened.is_snapshot_due:  # not before the answer, which need not wait for it
            task = asyncio.get_running_loop().create_task(self._write_snapshot(held))
            self._work.add(task)
            task.add_done_callback(self._work.discard)

    async def _write_snapshot(self, held: _Held) -> None:
        await held.lock.acquire()
        if held.opened.is_snapshot_due:
            await self._begun(held, held.opened.write_snapshot)
        else:
            held.lock.release()

    def _of(self, record: RunRecord) -> _Held:
        life = record.spec.run_id, record.create_time_s
        held = self._held.get(life)
        if held is None:
            held = self._held[life] = _Held(OpenBank(self._storage, record, self._settings))
        self._held.move_to_end(life)
        return held

    def _drop_some(self, used: _Held) -> None:
        total_bytes = sum(held.opened.bank.total_bytes for held in self._held.values())
        for life, held in list(self._held.items()):
            if total_bytes <= self._settings.max_bytes:
                return
            if held is not used and not held.lock.locked():
                total_bytes -= held.opened.bank.total_bytes
                del self._held[life]


def _called(call: Callable[[OpenBank, float], T], opened: OpenBank, until: float) -> T:
    try:
        return call(opened, until)
    except PreceptorError:
        raise
    except OSError as error:
        raise UnavailableError(f"the store cannot be used: {error.strerror or 'it failed'}; try again") from error

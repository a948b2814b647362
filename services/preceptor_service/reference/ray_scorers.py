"""`RayScorers`: parts scored by Ray Data, on every node of a Ray. Imported by `preceptor build-reference-losses` alone.

Importing Ray Data registers Arrow extension types that unpickle what they hold, so no process that reads what trainers
send may import this module: neither a gateway nor a scorer of the service.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data

from preceptor.errors import PreceptorError
from preceptor_service.reference.errors import JobError
from preceptor_service.reference.part_scorer import Layout, Part, PartScorer, Reference, Scoring


def has_gpu() -> bool:
    """Tells whether any node of the Ray in use has a GPU."""
    return bool(ray.cluster_resources().get("GPU", 0) > 0)


class RayScorers:
    """Implements `Scorers` by a pool of actors; a part whose actor died is scored again by another one.

    Nodes read the files themselves, at the same paths. Only ids and losses come back. Ray has to be initialised.

    Args:
        count: actors; None: one per GPU, or per CPU where scoring is on CPUs.
    """

    def __init__(self, count: int | None) -> None:
        self._count = count

    def __call__(
        self, reference: Reference, layout: Layout, scoring: Scoring, parts: Sequence[Part]
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yields number and losses of each part as they come."""
        resource = "GPU" if scoring.device == "cuda" else "CPU"
        count = self._count or int(ray.cluster_resources().get(resource, 1))
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.enable_operator_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        shared = ray.put((reference, layout, scoring, list(parts)))
        rows = ray.data.from_items(
            [{"place": place} for place in range(len(parts))], override_num_blocks=len(parts)
        ).map(
            _Actor,  # type: ignore[arg-type]  # Ray's hint leaves classes out
            fn_constructor_args=(ray.cloudpickle.dumps(shared),),
            compute=ray.data.ActorPoolStrategy(size=max(1, min(count, len(parts)))),
            num_gpus=1 if resource == "GPU" else None,
            num_cpus=None if resource == "GPU" else 1,
        )
        for row in rows.iter_rows():
            if row["error"]:
                raise JobError(row["error"])
            yield row["number"], pa.ipc.open_stream(row["table"]).read_all()


class _Actor:
    """One scorer of the pool."""

    def __init__(self, shared: bytes) -> None:
        # Pickled, a reference to an object is still one when it reaches the actor.
        reference, layout, scoring, self._parts = ray.get(ray.cloudpickle.loads(shared))
        self._error = ""
        try:
            self._scorer = PartScorer(reference, layout, scoring)
        except (JobError, PreceptorError) as error:
            self._error = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = self._parts[row["place"]]
        error, encoded = self._error, b""
        if not error:
            try:
                encoded = _encoded(self._scorer(part))
            except (JobError, PreceptorError) as failed:
                error = str(failed)
        return {"number": part.number, "table": encoded, "error": error}


def _encoded(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())

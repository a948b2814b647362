"""The table of reference losses: one Parquet file, sorted by `example_id`, and the parts that it is made from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preceptor.batches import EXAMPLE_ID
from preceptor_service.losses_file import METADATA, REFERENCE_LOSS, digest_of_columns, metadata_of
from preceptor_service.reference.durable import PARTIAL, locked, refuse_other, written
from preceptor_service.reference.errors import JobError

_PLAN = "plan.json"
_SHOWN_IDS = 5
_ROW_GROUP_ROWS = 1 << 20


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns what a table says that it was made from, as `metadata_of`.

    Raises:
        JobError: it is no table of ours.
    """
    try:
        return metadata_of(path)
    except ValueError as error:
        raise JobError(f"{error}; name another output") from error


def refuse_duplicates(ids: Any) -> None:
    """Refuses example ids of which one occurs twice.

    Args:
        ids: Arrow array or chunked array, sorted.

    Raises:
        JobError: naming some of them.
    """
    if len(ids) < 2:
        return
    whole = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    repeated = pc.unique(whole[1:].filter(pc.equal(whole[1:], whole[:-1])))
    if len(repeated):
        shown = ", ".join(repr(value) for value in repeated[:_SHOWN_IDS].to_pylist())
        more = ", …" if len(repeated) > _SHOWN_IDS else ""
        raise JobError(
            f"{len(repeated)} example ids occur more than once: {shown}{more}; give every example an id of its own"
        )


class LossesOutput:
    """Where the table goes: parts beside it until all are there, then the table in one step. One process at a time.

    Args:
        path: of the table.
        identity: what it is made from, for JSON.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self._path, self._identity = path, dict(json.loads(json.dumps(identity)))
        self._parts = path.with_name(f"{path.name}.parts")

    def finished(self) -> dict[str, Any] | None:
        """Returns the metadata of the finished table, or None where there is none.

        Raises:
            JobError: there is something else, or a table of something else.
        """
        if not self._path.exists():
            return None
        there = read_metadata(self._path)
        refuse_other(self._path, "other losses", there.get("identity", {}), self._identity)
        shutil.rmtree(self._parts, ignore_errors=True)  # of a process that was killed at the very end
        return there

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keeps other processes out meanwhile.

        Raises:
            JobError: another process builds this table, or parts of another one lie there.
        """
        with locked(self._parts):
            plan = self._parts / _PLAN
            if plan.exists():
                try:
                    there = json.loads(plan.read_text(encoding="utf-8"))
                except ValueError as error:
                    raise JobError(f"{plan} is no plan of ours: {error}; remove {self._parts}") from error
                refuse_other(self._parts, "parts of other losses", there, self._identity)
            else:
                foreign = [path.name for path in self._parts.iterdir() if not path.name.endswith(PARTIAL)]
                if foreign:
                    raise JobError(f"{self._parts} holds {foreign[0]!r}, which is no part; name another output")
                with written(plan) as partial:
                    partial.write_text(json.dumps(self._identity), encoding="utf-8")
            yield

    def done(self) -> set[int]:
        """Returns the numbers of the parts that are there."""
        return {int(path.stem.removeprefix("part-")) for path in self._parts.glob("part-*.parquet")}

    def add(self, number: int, table: pa.Table) -> None:
        """Keeps a part, durably."""
        with written(self._part(number)) as partial:
            pq.write_table(table, partial)

    def finish(self, count: int, digest: str) -> dict[str, Any]:
        """Writes the table from `count` parts, removes them, and returns its metadata. Holds the whole table.

        Raises:
            JobError: an example id occurs twice, or the disk is full.
        """
        whole = pa.concat_tables([pq.read_table(self._part(number)) for number in range(count)])
        whole = whole.sort_by(EXAMPLE_ID)
        refuse_duplicates(whole.column(EXAMPLE_ID))
        # A loss that overflowed is none: a score that is not finite is never drawn, live or by the table.
        losses = whole.column(REFERENCE_LOSS).to_numpy()
        losses = np.where(np.isfinite(losses), losses, np.float32(np.nan))
        whole = whole.set_column(whole.column_names.index(REFERENCE_LOSS), REFERENCE_LOSS, pa.array(losses))
        metadata = {
            "digest": digest,
            "rows": whole.num_rows,
            "rows_without_loss": int(np.isnan(losses).sum()),
            "mean_loss": float(np.nanmean(losses, dtype=np.float64)) if not np.isnan(losses).all() else None,
            "columns_digest": digest_of_columns(whole),
            "identity": self._identity,
        }
        with written(self._path) as partial:
            pq.write_table(
                whole.replace_schema_metadata({METADATA: json.dumps(metadata)}), partial, row_group_size=_ROW_GROUP_ROWS
            )
        shutil.rmtree(self._parts, ignore_errors=True)
        return metadata

    def _part(self, number: int) -> Path:
        return self._parts / f"part-{number:06}.parquet"

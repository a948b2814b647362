"""`build_losses`: the reference losses of a whole data set, once, as a table. Called by the command."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preceptor.errors import PreceptorError
from preceptor_service.loss_identity import digest_of, loss_identity
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.reference.dataset import PARQUET_SUFFIXES, check_names, example_ids, files_of
from preceptor_service.reference.errors import JobError
from preceptor_service.reference.losses_table import LossesOutput, refuse_duplicates
from preceptor_service.reference.part_scorer import Layout, Part, PartScorer, Reference, Scoring
from preceptor_service.tasks import run_columns

Scorers = Callable[[Reference, Layout, Scoring, Sequence[Part]], Iterator[tuple[int, pa.Table]]]
"""Yields number and losses of each part, in any order. Raises `JobError`."""


def score_here(
    reference: Reference, layout: Layout, scoring: Scoring, parts: Sequence[Part]
) -> Iterator[tuple[int, pa.Table]]:
    """Scores parts in this process, one after the other: `Scorers` without Ray."""
    try:
        scorer = PartScorer(reference, layout, scoring)
        for part in parts:
            yield part.number, scorer(part)
    except PreceptorError as error:
        raise JobError(str(error)) from error


def build_losses(
    reference: Reference,
    data: Sequence[Path],
    layout: Layout,
    scoring: Scoring,
    part_rows: int,
    path: Path,
    scorers: Scorers,
    is_stopped: Callable[[], bool],
    watch: Callable[[int, int], None],
) -> dict[str, Any] | None:
    """Writes the table of reference losses to `path`, going on from earlier parts, and returns its metadata.

    Args:
        reference: what scores.
        data: Parquet files, and directories of them.
        layout: their columns.
        scoring: how.
        part_rows: at least so many rows are kept at once, in whole row groups of one file.
        path: of the table; its parts lie beside it until it is whole.
        scorers: what scores parts.
        is_stopped: asked after every part; True leaves.
        watch: told how many rows are done, of how many.

    Returns:
        what the table says of itself; None where it was stopped.

    Raises:
        JobError: the data does not fit, an example id occurs twice, or `path` holds something else.
        InvalidRunError: unknown task, model or setting.
    """
    registry = ArchitectureRegistry(scoring.architectures)
    columns = run_columns(reference.task, registry.outline(reference.model, reference.config))
    files = files_of(data, PARQUET_SUFFIXES)
    parts, fingerprint, ids = _planned(files, layout.wanted(columns), layout.id_column, part_rows)
    losses = loss_identity(reference.task, reference.model, reference.config, reference.digest, registry)
    identity = {
        **losses,
        "data": fingerprint,
        "id_column": layout.id_column,
        "columns": dict(layout.names),
        "micro_batch_rows": scoring.micro_batch_rows,
        "part_rows": part_rows,
        "device": scoring.device,
        # Named only where they are kept, so that a table from before there were any can be gone on with.
        **({"content_digests": True} if scoring.contents else {}),
    }
    output = LossesOutput(path, identity)
    table = output.finished()
    if table is not None:
        return table
    refuse_duplicates(_sorted(ids))
    with output.open():
        done = output.done()
        left = [part for part in parts if part.number not in done]
        rows, total = sum(part.rows for part in parts if part.number in done), sum(part.rows for part in parts)
        watch(rows, total)
        if left:
            found = scorers(reference, layout, scoring, left)
            sizes = {part.number: part.rows for part in left}
            for number, table_of_part in found:
                output.add(number, table_of_part)
                rows += sizes.pop(number)
                watch(rows, total)
                if is_stopped() and sizes:
                    return None
            if sizes:
                raise JobError(f"{len(sizes)} of {len(parts)} parts were not scored; start again, it goes on")
        return output.finish(len(parts), digest_of(losses))


def _sorted(ids: pa.ChunkedArray) -> Any:
    return ids.take(pc.sort_indices(ids))


def _planned(
    files: Sequence[Path], names: list[str], id_column: str, part_rows: int
) -> tuple[list[Part], str, pa.ChunkedArray]:
    """Returns the parts, a fingerprint of the data, and all example ids."""
    parts: list[Part] = []
    ids = []
    fingerprint = hashlib.sha256()
    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                check_names(path, file.schema_arrow.names, names)
                parts += _parts_of(path, file.metadata, part_rows, len(parts))
                ids.append(example_ids(file.read(columns=[id_column]).column(0), f"{path}: column {id_column!r}", 0))
        except (pa.ArrowException, OSError) as error:
            raise JobError(f"{path} cannot be read: {str(error).splitlines()[0][:200]}") from error
        with path.open("rb") as content:
            fingerprint.update(hashlib.file_digest(content, "sha256").digest())
    if not parts:
        raise JobError(f"the data has 0 rows; give at least 1 in {', '.join(map(str, files))}")
    kinds = {str(array.type) for array in ids}
    if len(kinds) > 1:
        raise JobError(f"column {id_column!r} is {' and '.join(sorted(kinds))}; give ids of one type in every file")
    return parts, f"sha256:{fingerprint.hexdigest()}", pa.chunked_array(ids)


def _parts_of(path: Path, metadata: Any, part_rows: int, number: int) -> Iterator[Part]:
    groups: list[int] = []
    first_row, rows = 0, 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        rows += metadata.row_group(group).num_rows
        if rows and (rows >= part_rows or group + 1 == metadata.num_row_groups):
            yield Part(number, str(path), tuple(groups), first_row, rows)
            number, groups, first_row, rows = number + 1, [], first_row + rows, 0

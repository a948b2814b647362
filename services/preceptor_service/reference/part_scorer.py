"""`PartScorer`: reference losses of one part of a data set, by the engine that scores live. No Ray here."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load_file

from preceptor import RunSpec
from preceptor.batches import EXAMPLE_ID
from preceptor.weights import SafetensorsFile
from preceptor_service.columns import ColumnSpec
from preceptor_service.losses_file import CONTENT, REFERENCE_LOSS
from preceptor_service.models import ArchitectureRegistry
from preceptor_service.models.manifest import check_weights
from preceptor_service.reference.dataset import check_names, checked, column_values, example_ids
from preceptor_service.reference.errors import JobError
from preceptor_service.run_store import RunRecord, RunStore
from preceptor_service.scoring.engine import ScoringEngine
from preceptor_service.scoring.pool import ModelRef, ScoringModels
from preceptor_service.super_batch import SuperBatch
from preceptor_service.tasks import run_columns
from preceptor_service.weight_store import WeightStore

_RUN_ID = "reference-losses"


@dataclass(frozen=True)
class Reference:
    """A reference as it goes to scorers.

    Attributes:
        task: whose loss is computed.
        model: its architecture.
        config: the architecture's settings.
        weights: its safetensors, as the client would push them.
    """

    task: str
    model: str
    config: Mapping[str, Any]
    weights: bytes

    @property
    def digest(self) -> str:
        """`"sha256:..."` of the weights, the one that a push of them returns."""
        return f"sha256:{hashlib.sha256(self.weights).hexdigest()}"


def read_reference(
    path: Path, task: str, model: str, config: Mapping[str, Any], registry: ArchitectureRegistry
) -> Reference:
    """Returns a reference from a safetensors file, held in memory.

    Raises:
        JobError: there is no such file, or it is none.
        InvalidWeightsError: it does not fit the architecture.
        InvalidRunError: unknown model or setting.
    """
    outline = registry.outline(model, config)
    if not path.is_file():
        raise JobError(f"there are no weights at {path}; give a safetensors file")
    check_weights(path, outline)
    try:
        encoded = SafetensorsFile(load_file(path))
    except (OSError, SafetensorError) as error:
        raise JobError(f"{path} cannot be read: {error}") from error
    return Reference(task, model, dict(config), b"".join(chunk for _, chunk in encoded.chunks()))


@dataclass(frozen=True)
class Part:
    """Some row groups of one Parquet file, what is scored and kept at once.

    Attributes:
        number: from 0, in the order of the data.
        path: of the file.
        groups: numbers of the row groups.
        first_row: the first one's place in the file.
        rows: how many there are.
    """

    number: int
    path: str
    groups: tuple[int, ...]
    first_row: int
    rows: int


@dataclass(frozen=True)
class Layout:
    """How the data set names its columns: the example ids, and those of the task that are named otherwise."""

    id_column: str
    names: Mapping[str, str]

    def wanted(self, columns: Sequence[ColumnSpec]) -> list[str]:
        """Returns what a file must have: the task's columns, then the ids."""
        return [*(self.names.get(column.name, column.name) for column in columns), self.id_column]


@dataclass(frozen=True)
class Scoring:
    """How parts are scored.

    Attributes:
        micro_batch_rows: of one forward pass.
        device: `"cpu"` or `"cuda"`.
        threads: of one scorer on a CPU; None leaves torch's setting.
        architectures: the operator's own.
        contents: whether the content of each row is digested, too.
    """

    micro_batch_rows: int
    device: Literal["cpu", "cuda"]
    threads: int | None
    architectures: Mapping[str, str]
    contents: bool = True


class PartScorer:
    """A `ScoringEngine` that holds one reference, and scores what it reads. Blocking.

    Holds the reference, one row group as Arrow decodes it, and one micro-batch.

    Raises:
        PreceptorError: the reference does not fit its architecture or the memory.
    """

    def __init__(self, reference: Reference, layout: Layout, scoring: Scoring) -> None:
        registry = ArchitectureRegistry(scoring.architectures)
        outline = registry.outline(reference.model, reference.config)
        self._columns = run_columns(reference.task, outline)
        self._layout, self._rows, self._digests = layout, scoring.micro_batch_rows, scoring.contents
        with tempfile.TemporaryDirectory(prefix="preceptor-reference-") as folder:
            weights = _store_with(Path(folder), reference)
            config = json.dumps(dict(reference.config), sort_keys=True)
            ref = ModelRef(reference.model, config, reference.digest, len(reference.weights))
            self._models = ScoringModels(_RUN_ID, reference.task, learner=None, reference=ref)
            self._engine = ScoringEngine(weights, registry, scoring.device, scoring.threads, 1 << 40)
            self._engine.load(self._models)  # from here on the store is not read again

    def __call__(self, part: Part) -> pa.Table:
        """Returns `example_id`, `reference_loss` and, if asked for, `content_digest` of a part's rows, in their order.

        The loss is float32, NaN where an example has none.

        Raises:
            JobError: the data does not fit, as `dataset.column_values`.
            ResourceExhaustedError: the device has too little memory for a micro-batch.
        """
        ids, losses, contents = [], [], []
        row = part.first_row
        for table in self._micro_tables(part):
            where = f"{part.path}: column "
            arrays = {
                column.name: column_values(table.column(name), column, f"{where}{name!r}", row)
                for column, name in zip(self._columns, self._layout.wanted(self._columns), strict=False)
            }
            examples = checked(arrays, self._columns, row, f"{part.path}: ")
            ids.append(example_ids(table.column(self._layout.id_column), f"{where}{self._layout.id_column!r}", row))
            rows = SuperBatch(examples.columns, examples.rows)
            (micro_batch,) = rows.micro_batches(self._rows)
            found = self._engine.losses(self._models, micro_batch).reference
            losses.append(found if found is not None else np.full(examples.rows, np.nan, np.float32))
            if self._digests:
                contents.append(rows.contents())
            row += table.num_rows
        digests = {CONTENT: np.concatenate(contents)} if self._digests else {}
        return pa.table({EXAMPLE_ID: pa.chunked_array(ids), REFERENCE_LOSS: np.concatenate(losses), **digests})

    def _micro_tables(self, part: Part) -> Iterator[pa.Table]:
        """Yields the part's rows, as many at a time as a micro-batch has."""
        try:
            with pq.ParquetFile(part.path) as file:
                names = self._layout.wanted(self._columns)
                check_names(Path(part.path), file.schema_arrow.names, names)
                held = None
                for batch in file.iter_batches(self._rows, row_groups=list(part.groups), columns=names):
                    table = pa.Table.from_batches([batch])
                    held = table if held is None else pa.concat_tables([held, table])
                    while held.num_rows >= self._rows:
                        yield held.slice(0, self._rows)
                        held = held.slice(self._rows)
                if held is not None and held.num_rows:
                    yield held
        except (pa.ArrowException, OSError) as error:
            raise JobError(f"{part.path} cannot be read: {str(error).splitlines()[0][:200]}") from error


def _store_with(folder: Path, reference: Reference) -> WeightStore:
    spec = RunSpec(_RUN_ID, reference.model, reference.config, reference.task)
    RunStore(folder).create(RunRecord(spec, time.time(), micro_batch_rows=1))
    weights = WeightStore(folder, keep_versions=2, max_bytes=len(reference.weights))
    with weights.stage(len(reference.weights)) as staged:
        staged.write(reference.weights)
        staged.seal(hashlib.sha256(reference.weights).digest())
        weights.commit(_RUN_ID, "reference", staged, step=0, base_version=0)
    return weights

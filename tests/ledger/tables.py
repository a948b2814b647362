"""Tables of a ledger, and what somebody may do to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa


def changed(table: pa.Table, column: str, row: int, change: Callable[[Any], Any]) -> pa.Table:
    """Returns `table` with one value changed."""
    values = table[column].to_pylist()
    values[row] = change(values[row])
    at = table.schema.get_field_index(column)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))

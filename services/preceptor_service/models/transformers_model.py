"""`TransformersModel`: a model of transformers under our columns, its state dict named as the bare model's."""

from __future__ import annotations

from typing import Any

from torch import nn

from preceptor_service.columns import ColumnSpec


class TransformersModel(nn.Module):
    """Holds a bare model of transformers; architectures add `forward`.

    Its state dict has the names of the bare model, so that a trainer pushes `model.state_dict()` as it is.
    """

    def __init__(self, model: nn.Module, input_columns: tuple[ColumnSpec, ...]) -> None:
        super().__init__()
        self.input_columns = input_columns
        self.model = model
        self.register_state_dict_post_hook(_without_prefix)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_prefix)  # type: ignore[no-untyped-call]


def _without_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    _rename(state_dict, f"{prefix}model.", prefix)


def _with_prefix(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    _rename(state_dict, prefix, f"{prefix}model.")


def _rename(state_dict: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in state_dict if name.startswith(old)]:
        state_dict[new + name.removeprefix(old)] = state_dict.pop(name)

"""The configuration as an annotated YAML file: every setting, its default, its meaning."""

from __future__ import annotations

import textwrap
from pathlib import Path

import yaml
from pydantic import BaseModel

from preceptor_service.config import ServiceConfig

_WIDTH = 110
_HEADER = "# Every setting of the service with its default. Written by 'preceptor config'; keep what you change."


def default_yaml() -> str:
    """Returns YAML that loads into `ServiceConfig()`, with a comment above each setting."""
    return "\n".join([_HEADER, *_lines(ServiceConfig(), indent=0)]) + "\n"


def _lines(section: BaseModel, indent: int) -> list[str]:
    lines = []
    margin = "  " * indent
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            meaning = (type(value).__doc__ or "").splitlines()[0]
            lines += ["", f"{margin}# {meaning}", f"{margin}{name}:", *_lines(value, indent + 1)]
        else:
            comment = textwrap.wrap(field.description or "", _WIDTH, break_long_words=False)
            lines += [f"{margin}# {line}" for line in comment]
            lines.append(f"{margin}{name}: {_scalar(value)}")
    return lines


def _scalar(value: object) -> str:
    plain = str(value) if isinstance(value, Path) else value
    return yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()

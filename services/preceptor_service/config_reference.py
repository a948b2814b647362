"""The configuration as an annotated YAML file: every setting, its default, its meaning."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import get_args

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from preceptor_service.config import ServiceConfig

_WIDTH = 110
_HEADER = """\
# Every setting of the service with its default. Written by 'preceptor config'; keep what you change.
# A section that is off is commented out without a blank: remove the # in front of each of its lines, and fill what is
# required."""


def default_yaml() -> str:
    """Returns YAML that loads into `ServiceConfig()`, with a comment above each setting.

    Sections that are off by default are commented out: less the first `#` of each of their lines they are settings.
    """
    return "\n".join([_HEADER, *_lines(ServiceConfig, indent=0)]) + "\n"


def _lines(section: type[BaseModel], indent: int) -> list[str]:
    lines = []
    margin = "  " * indent
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            lines += ["", *_comment(_meaning(type(default)), margin), f"{margin}{name}:"]
            lines += _lines(type(default), indent + 1)
        elif (optional := _optional_section(field)) is not None:
            lines += ["", *_comment(f"{_meaning(optional)} {field.description}", margin), f"{margin}#{name}:"]
            lines += [f"{margin}#{line.removeprefix(margin)}" for line in _lines(optional, indent + 1) if line]
        else:
            is_required = field.is_required()
            lines += _comment(f"{field.description or ''}{' Required.' if is_required else ''}", margin)
            lines.append(f"{margin}{name}:" if is_required else f"{margin}{name}: {_scalar(default)}")
    return lines


def _comment(text: str, margin: str) -> list[str]:
    return [f"{margin}# {line}" for line in textwrap.wrap(text, _WIDTH, break_long_words=False)]


def _meaning(section: type[BaseModel]) -> str:
    return (section.__doc__ or "").splitlines()[0]


def _optional_section(field: FieldInfo) -> type[BaseModel] | None:
    """Returns the section that a field may hold where it holds none by default."""
    for choice in get_args(field.annotation):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _scalar(value: object) -> str:
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True).removesuffix("...\n").strip()

"""Writes the part `config` of the chart's schema from `ServiceConfig`, so that helm refuses what the service would.

    python helm/schema.py           # writes it
    python helm/schema.py --check   # status 1 where the schema differs

The rest of values.schema.json is written by hand. Without references and alternatives, because of those helm says only
that none fits.
"""

# ruff: noqa: INP001 - a script beside the chart, not a package

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from preceptor_service.config import ServiceConfig

SCHEMA = Path(__file__).resolve().parent / "preceptor" / "values.schema.json"
_LEFT_OUT = ("title", "default", "format")


def config_schema() -> dict[str, Any]:
    """Returns what helm shall accept as `config`."""
    schema = ServiceConfig.model_json_schema()
    plain: dict[str, Any] = _plain(schema, schema.pop("$defs"))
    return plain


def _plain(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Returns a schema with every reference followed and every alternative made one."""
    if "$ref" in node:
        referred = definitions[node["$ref"].removeprefix("#/$defs/")]
        return _plain({**referred, **{key: value for key, value in node.items() if key != "$ref"}}, definitions)
    if "anyOf" in node:
        choices = [_plain(choice, definitions) for choice in node["anyOf"]]
        types = sorted({choice["type"] for choice in choices})
        one: dict[str, Any] = {}
        for choice in choices:
            one |= choice
        own = {key: value for key, value in node.items() if key not in ("anyOf", *_LEFT_OUT)}
        return {**one, **own, "type": types[0] if len(types) == 1 else types}
    plain: dict[str, Any] = {}
    for key, value in node.items():
        if key == "properties":
            plain[key] = {name: _plain(item, definitions) for name, item in value.items()}
        elif key not in _LEFT_OUT:
            plain[key] = _plain(value, definitions) if isinstance(value, dict) else value
    if plain.get("type") == "integer" and "exclusiveMinimum" in plain:
        # Of a bound that is excluded helm 4 says "got 0, want 0".
        plain["minimum"] = plain.pop("exclusiveMinimum") + 1
    return plain


def with_config(text: str) -> str:
    """Returns the schema in `text` with the part of today's `ServiceConfig`."""
    schema = json.loads(text)
    schema["properties"]["config"] = config_schema()
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    """Writes the schema, or compares it."""
    parser = argparse.ArgumentParser(description="Write the part `config` of values.schema.json.")
    parser.add_argument("--check", action="store_true", help="only compare")
    is_check = parser.parse_args().check
    found = SCHEMA.read_text()
    wanted = with_config(found)
    if is_check:
        if found != wanted:
            sys.stderr.write(f"helm/preceptor/{SCHEMA.name} differs from ServiceConfig; run python helm/schema.py\n")
        return int(found != wanted)
    SCHEMA.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The access file: hashes of tokens, and what each identity and group may do. Format: `docs/security.md`."""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from preceptor_service.access.caller import Grants, Role
from preceptor_service.config import ConfigError

TOKEN_BYTES = 32
"""Random bytes of a token: so many that a plain SHA-256 of it cannot be searched."""

_HASH = re.compile(r"sha256:[0-9a-f]{64}")
_PREFIX = "prc_"

RunPattern = Annotated[str, Field(pattern=r"^[a-z0-9*-]{1,63}$")]
_Roles = dict[Role, tuple[RunPattern, ...]]
# Names of static tokens hold no colon, so that no certificate and no provider can name the same identity.
TokenIdentity = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@/-]{0,127}$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Token(_Section):
    identity: TokenIdentity
    expires: AwareDatetime | None = None


class _Granted(_Section):
    roles: _Roles = {}


class _File(_Section):
    tokens: dict[str, _Token] = {}
    identities: dict[str, _Granted] = {}
    groups: dict[str, _Granted] = {}


@dataclass(frozen=True)
class TokenOwner:
    """Whose token it is, and until when, in seconds since the epoch."""

    identity: str
    expires_at: float


@dataclass(frozen=True)
class AccessTable:
    """The access file, understood."""

    owners: Mapping[str, TokenOwner]
    identities: Mapping[str, Grants]
    groups: Mapping[str, Grants]

    def owner(self, token: str) -> TokenOwner | None:
        """Returns whose `token` is, or None; takes as long whatever the token is like."""
        presented = token_hash(token).encode()
        found = None
        for known, owner in self.owners.items():
            if hmac.compare_digest(known.encode(), presented):
                found = owner
        return found

    def grants(self, identity: str, groups: tuple[str, ...] = ()) -> Grants:
        """Returns what an identity may do, by itself and by its groups."""
        named = [self.identities.get(identity), *(self.groups.get(group) for group in groups)]
        return Grants.union(grants for grants in named if grants is not None)


def new_token() -> str:
    """Returns a token that nobody can guess."""
    return _PREFIX + secrets.token_urlsafe(TOKEN_BYTES)


def token_hash(token: str) -> str:
    """Returns what the access file holds of `token`: `sha256:` and 64 hexadecimal digits."""
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


def parse_access(content: bytes, path: Path) -> AccessTable:
    """Returns what the access file says.

    Raises:
        ConfigError: it cannot be used; the text quotes nothing of it, for a token may stand where none should.
    """
    try:
        settings: Any = yaml.load(content, _NoDuplicates) or {}  # noqa: S506 - a SafeLoader
        if not isinstance(settings, dict):
            raise ConfigError(
                f"{path} holds a {type(settings).__name__}; it must be a mapping of tokens, identities and groups"
            )
        file = _File.model_validate(settings)
    except yaml.MarkedYAMLError as error:
        line = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path} is not YAML{line}, or names something twice") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigError(f"{path} is not YAML") from None
    except ValidationError as error:
        raise ConfigError(f"{path} cannot be used:\n" + "\n".join(_complaints(error, settings))) from None
    for position, digest in enumerate(file.tokens, start=1):
        if not _HASH.fullmatch(digest):
            raise ConfigError(
                f"{path}: tokens, entry {position}: not 'sha256:' and 64 hexadecimal digits; "
                "make a token and its hash with `preceptor token`"
            )
    return AccessTable(
        owners={digest: TokenOwner(token.identity, _epoch(token.expires)) for digest, token in file.tokens.items()},
        identities={name: Grants(granted.roles) for name, granted in file.identities.items()},
        groups={name: Grants(granted.roles) for name, granted in file.groups.items()},
    )


class _NoDuplicates(yaml.SafeLoader):
    """YAML in which no key comes twice: of two entries for one token, only one would be deleted when it leaks."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(problem="a key comes twice", problem_mark=node.start_mark)
        return mapping


def _complaints(error: ValidationError, settings: object) -> list[str]:
    """Says where something is wrong, with the position in place of a token's hash."""
    hashes = list(settings.get("tokens") or ()) if isinstance(settings, dict) else []
    lines = []
    for item in error.errors(include_input=False, include_url=False):
        where = [
            f"entry {hashes.index(part) + 1}" if depth == 1 and item["loc"][0] == "tokens" else str(part)
            for depth, part in enumerate(item["loc"])
        ]
        problem = item["msg"]
        if item["type"] == "extra_forbidden":
            where, problem = where[:-1], "has a setting that is unknown"
        lines.append(f"  {', '.join(where) or 'the file'}: {problem}")
    return lines


def _epoch(moment: datetime | None) -> float:
    return math.inf if moment is None else moment.astimezone(UTC).timestamp()

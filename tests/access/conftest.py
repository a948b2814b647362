"""A service that knows its callers, on real sockets, with the in-process pool."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from preceptor_service.access.access_file import new_token, token_hash
from preceptor_service.app import RunningService, start_service
from tests.access import calls
from tests.access.provider import AUDIENCE, ISSUER, Provider, key_set
from tests.service.conftest import config

GRANTS: dict[str, dict[str, list[str]]] = {
    "owner": {"create": ["team-*"]},
    "creator": {"create": ["team-*"]},
    "scorer": {"score": ["team-*"]},
    "pusher": {"push": ["team-*"]},
    "admin": {"admin": ["*"]},
    "elsewhere": {"admin": ["other-*"]},
    "stranger": {},
    "late": {"admin": ["*"]},
}
GROUPS = {"scorers": {"score": ["team-*"]}}


class AccessFile:
    """The file of tokens and grants, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens = {name: new_token() for name in GRANTS}
        self.write()

    def write(self, *, without: str | None = None, grants: Mapping[str, dict[str, list[str]]] = GRANTS) -> None:
        tokens: dict[str, dict[str, Any]] = {
            token_hash(token): {"identity": name} for name, token in self.tokens.items() if name != without
        }
        tokens[token_hash(self.tokens["late"])]["expires"] = "2020-01-01T00:00:00Z"
        settings = {
            "tokens": tokens,
            "identities": {name: {"roles": roles} for name, roles in grants.items()},
            "groups": {name: {"roles": roles} for name, roles in GROUPS.items()},
        }
        replace(self.path, yaml.safe_dump(settings).encode())


def replace(path: Path, content: bytes) -> None:
    """Writes a file as a careful operator does: whole, or not at all."""
    scratch = path.with_suffix(".new")
    scratch.write_bytes(content)
    os.replace(scratch, path)


class Guarded:
    """A running service with its files."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.access = AccessFile(folder / "access.yaml")
        self.provider = Provider()
        self.keys = folder / "keys.json"
        self.keys.write_bytes(key_set(self.provider.jwk))
        self.audit = folder / "audit.log"
        auth = {
            "access_file": str(self.access.path),
            "recheck_s": 0.2,
            "oidc": {"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": str(self.keys), "leeway_s": 0},
        }
        settings: dict[str, Any] = {"auth": auth, "audit": {"file": str(self.audit)}, **sections}
        self.service: RunningService = start_service(config(folder / "store", **settings))
        self.target = f"127.0.0.1:{self.service.ports.grpc}"

    def token(self, caller: str) -> str | None:
        """A token of `caller`: one of the file, or of the provider."""
        made: dict[str, Callable[[], str | None]] = {
            "nobody": lambda: None,
            "unknown": new_token,
            "garbage": lambda: "!.~.{}",
            "oidc scorer": lambda: self.provider.token(groups=["scorers"]),
            "oidc stranger": lambda: self.provider.token(sub="scorer", groups=["admins"]),
            "oidc owner by name": lambda: self.provider.token(sub="owner"),
            "oidc expired": lambda: self.provider.token(groups=["scorers"], exp=int(time.time()) - 1),
            "oidc not yet": lambda: self.provider.token(groups=["scorers"], nbf=int(time.time()) + 100),
            "oidc wrong issuer": lambda: self.provider.token(groups=["scorers"], iss="https://another.example"),
            "oidc another key": lambda: Provider(self.provider.kid).token(groups=["scorers"]),
            "oidc wrong audience": lambda: self.provider.token(groups=["scorers"], aud="another"),
            "oidc alg none": lambda: self.provider.unsigned(groups=["scorers"]),
            "oidc HS256": lambda: self.provider.signed_with_the_public_key(groups=["scorers"]),
            "oidc unknown kid": lambda: Provider("other").token(groups=["scorers"]),
        }
        return made[caller]() if caller in made else self.access.tokens[caller]

    def audit_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    guarded = Guarded(tmp_path_factory.mktemp("guarded"))
    yield guarded
    guarded.service.stop()


@pytest.fixture(scope="session")
def opened(guarded: Guarded) -> Iterator[grpc.Channel]:
    with calls.channel(guarded.target) as opened:
        yield opened


@pytest.fixture
def start_guarded(tmp_path: Path) -> Iterator[Callable[..., Guarded]]:
    """Starts a service for one test alone."""
    started: list[Guarded] = []

    def start(**sections: Any) -> Guarded:
        started.append(Guarded(tmp_path / f"guarded-{len(started)}", **sections))
        return started[-1]

    yield start
    for guarded in started:
        guarded.service.stop()


_numbers = itertools.count(1)


@pytest.fixture
def new_id() -> str:
    return f"team-a-{next(_numbers)}"


@pytest.fixture
def run_id(guarded: Guarded, opened: grpc.Channel, new_id: str) -> str:
    """A run that `owner` created, with something in its memory bank."""
    for name in ("CreateRun", "Remember"):
        assert calls.answer(opened, name, new_id, calls.bearer(guarded.token("owner"))).code == "OK"
    return new_id

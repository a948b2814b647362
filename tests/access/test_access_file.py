"""The access file: hashes instead of tokens, names instead of wildcards by accident, and nothing quoted."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preceptor_service.access.access_file import new_token, parse_access, token_hash
from preceptor_service.access.caller import NOBODY, UNRESTRICTED, Caller, Grants, Role
from preceptor_service.config import ConfigError, parse_config

TOKEN = new_token()
PATH = Path("access.yaml")
FILE = f"""
tokens:
  {token_hash(TOKEN)}: {{identity: team-a, expires: 2001-02-03T04:05:06Z}}
identities:
  team-a: {{roles: {{create: ["team-a-*"], score: [shared]}}}}
groups:
  ops: {{roles: {{admin: ["*"]}}}}
"""


def test_a_token_is_known_by_its_hash_alone() -> None:
    table = parse_access(FILE.encode(), PATH)
    owner = table.owner(TOKEN)
    assert owner is not None
    assert (owner.identity, owner.expires_at) == ("team-a", 981173106.0)
    assert TOKEN not in FILE
    for wrong in ("", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), token_hash(TOKEN), new_token()):
        assert table.owner(wrong) is None


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(1000)}
    assert len(tokens) == 1000
    assert min(map(len, tokens)) >= 43


def test_groups_add_to_what_an_identity_may_do() -> None:
    table = parse_access(FILE.encode(), PATH)
    assert table.grants("team-a").allow("score", "shared")
    assert not table.grants("team-a").allow("push", "shared")
    assert table.grants("team-a", ("ops", "unknown")).allow("push", "shared")
    assert not table.grants("nobody").allow("score", "shared")


_SECRET = "prc_this-is-a-plain-token"
_BAD = {
    "a plain token": f"tokens:\n  {_SECRET}: {{identity: a}}",
    "a plain token as identity": f"tokens:\n  {token_hash('x')}: {{identity: a, {_SECRET}: 3}}",
    "a plain token instead of an entry": f"tokens:\n  {_SECRET}: {_SECRET}",
    "broken YAML": f"tokens: {{{_SECRET}: [",
    "a list": f"- {_SECRET}",
    "a text": _SECRET,
    "not UTF-8": b"\xff\xfe\xff",
    "an unknown section": "people: {}",
    "an unknown role": "identities: {a: {roles: {root: ['*']}}}",
    "a pattern with a bracket": "identities: {a: {roles: {score: ['[a-z]*']}}}",
    "a pattern with capitals": "identities: {a: {roles: {score: ['Team']}}}",
    "a pattern that is a text": "identities: {a: {roles: {score: '*'}}}",
    "an identity with a colon": f"tokens:\n  {token_hash('x')}: {{identity: 'oidc:alice'}}",
    "an end without a zone": f"tokens:\n  {token_hash('x')}: {{identity: a, expires: 2030-01-01T00:00:00}}",
    "a token twice": f"tokens:\n  {token_hash('x')}: {{identity: a}}\n  {token_hash('x')}: {{identity: b}}",
    "code": "tokens: !!python/object/apply:os.system ['true']",
}


@pytest.mark.parametrize("content", _BAD.values(), ids=_BAD.keys())
def test_a_file_that_cannot_be_used_is_refused_and_not_quoted(content: str | bytes) -> None:
    with pytest.raises(ConfigError, match=r"access\.yaml") as raised:
        parse_access(content if isinstance(content, bytes) else content.encode(), PATH)
    assert _SECRET not in str(raised.value)
    assert raised.value.__cause__ is None


def test_a_file_that_is_no_mapping_is_told_what_it_must_be() -> None:
    with pytest.raises(ConfigError, match=r"access\.yaml holds a list; it must be a mapping of tokens, identities"):
        parse_access(b"- a", PATH)


def test_an_empty_file_allows_nothing() -> None:
    table = parse_access(b"", PATH)
    assert table.owner("") is None
    assert not table.grants("a").allow("score", "a")


ROLES: tuple[Role, ...] = ("create", "score", "push", "admin")


@pytest.mark.parametrize("role", ROLES)
def test_a_grant_gives_one_role_and_admin_gives_all(role: Role) -> None:
    granted = Caller("a", Grants({role: ("run-*",)}))
    for asked in ROLES:
        assert granted.may(asked, "run-1", "b") == (asked == role or role == "admin")
        assert not granted.may(asked, "ruin", "b")


@given(st.text("ab-", min_size=1, max_size=8), st.sampled_from(ROLES))
def test_a_creator_has_every_role_and_nobody_has_none(run_id: str, role: Role) -> None:
    assert Caller("a", Grants({})).may(role, run_id, "a")
    assert not Caller("a", Grants({})).may(role, run_id, "b")
    assert not Caller("a", Grants({})).may(role, run_id, None)
    assert not NOBODY.may(role, run_id, None)
    assert UNRESTRICTED.may(role, run_id, "a")


def test_tokens_in_the_clear_have_to_be_asked_for() -> None:
    auth = {"access_file": "access.yaml"}
    with pytest.raises(ConfigError, match="tokens would travel in the clear"):
        parse_config({"gateway": {"host": "0.0.0.0"}, "auth": auth})
    parse_config({"gateway": {"host": "0.0.0.0"}, "auth": {**auth, "allow_plaintext": True}})
    parse_config({"gateway": {"host": "127.0.0.1"}, "auth": auth})
    parse_config({"gateway": {"host": "0.0.0.0"}, "auth": auth, "tls": {"certificate": "c", "private_key": "k"}})


@pytest.mark.parametrize(
    ("settings", "is_insecure"),
    [
        ({}, False),
        ({"gateway": {"host": "::1"}}, False),
        ({"gateway": {"host": "0.0.0.0"}}, True),
        ({"gateway": {"host": "gateway.example"}}, True),
        ({"gateway": {"host": "0.0.0.0"}, "tls": {"certificate": "c", "private_key": "k"}}, True),
        ({"gateway": {"host": "0.0.0.0"}, "tls": {"certificate": "c", "private_key": "k", "client_ca": "a"}}, False),
        ({"gateway": {"host": "0.0.0.0"}, "auth": {"access_file": "f", "allow_plaintext": True}}, False),
    ],
)
def test_a_service_that_strangers_reach_calls_itself_insecure(settings: dict[str, object], is_insecure: bool) -> None:
    assert parse_config(settings).is_insecure == is_insecure


def test_the_last_of_a_thousand_tokens_is_known() -> None:
    lines = "\n".join(f"  {token_hash(str(number))}: {{identity: i{number}}}" for number in range(1000))
    table = parse_access(f"tokens:\n{lines}".encode(), PATH)
    owner = table.owner("999")
    assert owner is not None
    assert owner.identity == "i999"
    assert owner.expires_at > time.time()

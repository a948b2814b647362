"""JWTs: only what the operator's provider signed, for this service, for now."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest

from preceptor.errors import UnauthenticatedError, UnavailableError
from preceptor_service.access.oidc import FileKeys, TokenVerifier, UrlKeys, parse_keys
from preceptor_service.config import ConfigError, OidcConfig
from tests.access.provider import AUDIENCE, ISSUER, Provider, claims_of, edwards, elliptic, key_set

PROVIDER = Provider()
STRANGER = Provider()


def _ignore() -> None:
    return


def verifier(tmp_path: Path, *keys: dict[str, Any], **settings: Any) -> TokenVerifier:
    path = tmp_path / "jwks.json"
    path.write_bytes(key_set(*(keys or (PROVIDER.jwk,))))
    config = OidcConfig(**{"issuer": ISSUER, "audience": AUDIENCE, "jwks_file": path, **settings})
    return TokenVerifier(config, FileKeys(path, _ignore))


def test_a_valid_token_names_its_subject_groups_and_end(tmp_path: Path) -> None:
    token = PROVIDER.token(groups=["team-a", "team-b", 7], exp=int(time.time()) + 100)
    claims = asyncio.run(verifier(tmp_path, leeway_s=20).verify(token))
    assert (claims.subject, claims.groups) == ("alice", ("team-a", "team-b"))
    assert claims.expires_at == pytest.approx(time.time() + 120, abs=5)


@pytest.mark.parametrize("groups", ["team-a", {"team-a": 1}, None, 3], ids=repr)
def test_groups_that_are_no_list_are_none(tmp_path: Path, groups: object) -> None:
    assert asyncio.run(verifier(tmp_path).verify(PROVIDER.token(groups=groups))).groups == ()


@pytest.mark.parametrize(("algorithm", "make"), [("ES256", elliptic), ("EdDSA", edwards)])
def test_other_listed_algorithms_are_taken_and_unlisted_ones_are_not(
    tmp_path: Path, algorithm: str, make: Callable[[str], tuple[Any, dict[str, Any]]]
) -> None:
    key, jwk = make("other")
    token = jwt.encode(claims_of(), key, algorithm, headers={"kid": "other"})
    listed = verifier(tmp_path, PROVIDER.jwk, jwk, algorithms=(algorithm,))
    assert asyncio.run(listed.verify(token)).subject == "alice"
    with pytest.raises(UnauthenticatedError):
        asyncio.run(listed.verify(PROVIDER.token()))


_now = int(time.time())
_BAD: dict[str, Callable[[], str]] = {
    "alg none": PROVIDER.unsigned,
    "HS256 with the public key": PROVIDER.signed_with_the_public_key,
    "another's key under our kid": STRANGER.token,
    "unknown kid": lambda: PROVIDER.token(header={"kid": "second"}),
    "kid that is no text": lambda: PROVIDER.token(header={"kid": "first"}).replace("ey", "eyJraWQiOjF9", 1),
    "key in the header": lambda: STRANGER.token(header={"jwk": STRANGER.jwk, "jku": "https://evil.example/jwks"}),
    "critical header": lambda: PROVIDER.token(header={"crit": ["b64"], "b64": True}),
    "expired": lambda: PROVIDER.token(exp=_now - 60),
    "not yet valid": lambda: PROVIDER.token(nbf=_now + 3600),
    "no end": lambda: PROVIDER.token(exp=None),
    "endless": lambda: PROVIDER.token(exp="never"),
    "another audience": lambda: PROVIDER.token(aud="somebody-else"),
    "no audience": lambda: PROVIDER.token(aud=None),
    "another issuer": lambda: PROVIDER.token(iss="https://evil.example"),
    "no issuer": lambda: PROVIDER.token(iss=None),
    "no subject": lambda: PROVIDER.token(sub=None),
    "empty subject": lambda: PROVIDER.token(sub=""),
    "subject with a line break": lambda: PROVIDER.token(sub="a\nb"),
    "altered": lambda: PROVIDER.token()[:-8] + "AAAAAAAA",
    "not one": lambda: "a.b.c",
}


@pytest.mark.parametrize("make", _BAD.values(), ids=_BAD.keys())
def test_anything_else_is_refused_and_not_quoted(tmp_path: Path, make: Callable[[], str]) -> None:
    token = make()
    with pytest.raises(UnauthenticatedError) as raised:
        asyncio.run(verifier(tmp_path).verify(token))
    assert not any(part in str(raised.value) for part in token.split(".") if len(part) > 3)


def test_the_leeway_forgives_clocks(tmp_path: Path) -> None:
    late = PROVIDER.token(exp=int(time.time()) - 20)
    assert asyncio.run(verifier(tmp_path, leeway_s=60).verify(late)).subject == "alice"
    with pytest.raises(UnauthenticatedError, match="has expired"):
        asyncio.run(verifier(tmp_path, leeway_s=0).verify(late))


def test_a_token_without_kid_needs_a_provider_with_one_fitting_key(tmp_path: Path) -> None:
    token = jwt.encode(claims_of(), PROVIDER._key, "RS256")
    assert asyncio.run(verifier(tmp_path).verify(token)).subject == "alice"
    with pytest.raises(UnauthenticatedError):
        asyncio.run(verifier(tmp_path, PROVIDER.jwk, {**STRANGER.jwk, "kid": "second"}).verify(token))


def test_symmetric_private_and_encryption_keys_are_left_out() -> None:
    keys = parse_keys(
        key_set(
            PROVIDER.jwk,
            {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"},
            {**STRANGER.jwk, "kid": "encryption", "use": "enc"},
            {**STRANGER.jwk, "kid": "other", "alg": "RS512"},
            {**STRANGER.jwk, "kid": "private", "d": "AQAB"},
        )
    )
    assert list(keys) == ["first"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"keys": 3}', b'{"keys": []}', b'{"keys": ["x"]}', b"\xff"])
def test_keys_that_are_none_are_refused(content: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_keys(content)


class Site:
    """Holds keys at a URL, and counts who asks; its clock moves when told."""

    def __init__(self, *providers: Provider) -> None:
        self.providers = providers
        self.asked = 0
        self.is_down = False
        self.now = 1000.0
        self.failures = itertools.count()

    def fetch(self, url: str, context: ssl.SSLContext) -> bytes:
        self.asked += 1
        if self.is_down:
            raise OSError("down")
        return key_set(*(provider.jwk for provider in self.providers))

    def verifier(self) -> TokenVerifier:
        url = "https://issuer.example/jwks"
        config = OidcConfig(issuer=ISSUER, audience=AUDIENCE, jwks_url=url)
        return TokenVerifier(config, UrlKeys(url, None, _ignore, self.fetch, lambda: self.now))


def test_keys_of_a_url_are_fetched_once_however_many_calls_wait() -> None:
    site = Site(PROVIDER)

    async def many() -> None:
        tokens = site.verifier()
        await asyncio.gather(*(tokens.verify(PROVIDER.token()) for _ in range(20)))

    asyncio.run(many())
    assert site.asked == 1


def test_a_new_key_is_found_and_a_removed_one_is_dropped() -> None:
    site, second = Site(PROVIDER), Provider("second")

    async def rotate() -> None:
        tokens = site.verifier()
        await tokens.verify(PROVIDER.token())
        site.providers = (second,)
        site.now += 11
        assert (await tokens.verify(second.token())).subject == "alice"
        with pytest.raises(UnauthenticatedError):
            await tokens.verify(PROVIDER.token())

    asyncio.run(rotate())
    assert site.asked == 2


def test_unknown_kids_cannot_make_the_gateway_ask_more_than_every_ten_seconds() -> None:
    site = Site(PROVIDER)

    async def flood() -> None:
        tokens = site.verifier()
        await tokens.verify(PROVIDER.token())
        for number in range(50):
            site.now += 0.5
            with pytest.raises(UnauthenticatedError):
                await tokens.verify(STRANGER.token(header={"kid": f"k{number}"}))

    asyncio.run(flood())
    assert site.asked == 1 + 2


def test_old_keys_are_fetched_again_in_the_background() -> None:
    site, second = Site(PROVIDER), Provider("second")

    async def grow_old() -> None:
        tokens = site.verifier()
        await tokens.verify(PROVIDER.token())
        site.providers = (second,)
        site.now += 301
        await tokens.verify(PROVIDER.token())
        async with asyncio.timeout(10):
            await asyncio.gather(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))
        with pytest.raises(UnauthenticatedError):
            await tokens.verify(PROVIDER.token())

    asyncio.run(grow_old())
    assert site.asked == 2


def test_a_provider_that_is_down_is_survived_for_a_day() -> None:
    site = Site(PROVIDER)

    async def outlive() -> None:
        tokens = site.verifier()
        site.is_down = True
        with pytest.raises(UnavailableError, match="cannot be fetched"):
            await tokens.verify(PROVIDER.token())
        site.is_down = False
        site.now += 11
        await tokens.verify(PROVIDER.token())
        site.is_down = True
        site.now += 3600
        await tokens.verify(PROVIDER.token())
        site.now += 24 * 3600
        with pytest.raises(UnavailableError):
            await tokens.verify(PROVIDER.token())

    asyncio.run(outlive())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"jwks_url": "http://issuer.example/jwks"}, "https"),
        ({"jwks_url": "file:///etc/passwd"}, "https"),
        ({}, "one of jwks_url and jwks_file"),
        ({"jwks_url": "https://issuer.example", "jwks_file": "keys"}, "one of jwks_url and jwks_file"),
        ({"jwks_file": "keys", "algorithms": ["HS256"]}, "algorithms"),
        ({"jwks_file": "keys", "algorithms": ["none"]}, "algorithms"),
        ({"jwks_file": "keys", "algorithms": []}, "algorithms"),
    ],
)
def test_settings_that_would_be_unsafe_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        OidcConfig(**{"issuer": ISSUER, "audience": AUDIENCE, **settings})

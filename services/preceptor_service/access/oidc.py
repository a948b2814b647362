"""JWTs of one OpenID provider: verified against keys that the operator named, and against nothing in the token."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jwt

from preceptor.errors import UnauthenticatedError, UnavailableError
from preceptor_service.access.watched import Watched
from preceptor_service.config import ConfigError, OidcConfig

logger = logging.getLogger(__name__)

_KEY_TYPES = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
_REJECTED = "the token is not accepted; get a valid one from the operator or the identity provider"
_MAX_BYTES = 1024 * 1024
_FETCH_TIMEOUT_S = 5.0
_REFRESH_S = 300.0
_RETRY_S = 10.0
_MAX_AGE_S = 24 * 3600.0
_MAX_GROUPS = 256

Keys = Mapping[str | None, tuple[jwt.PyJWK, ...]]
"""Public keys by `kid`."""


@dataclass(frozen=True)
class Claims:
    """What a verified token says.

    Attributes:
        subject: whose it is, unique at the provider.
        groups: names of the groups of that subject.
        expires_at: when it ends, leeway included, in seconds since the epoch.
    """

    subject: str
    groups: tuple[str, ...]
    expires_at: float


class KeySource(Protocol):
    """The provider's keys, wherever they come from."""

    @property
    def generation(self) -> int:
        """Grows when the keys change."""
        ...

    async def keys(self, kid: str | None) -> Keys:
        """Returns the keys, having looked for newer ones where `kid` is not among them.

        Raises:
            UnavailableError: there are none yet, and they cannot be had.
        """
        ...


class FileKeys:
    """Keys from a file, read again when it changes."""

    def __init__(self, path: Path, on_failure: Callable[[], None]) -> None:
        self.watched: Watched[Keys] = Watched("file of OIDC keys", [path], lambda read: parse_keys(read[0]), on_failure)

    @property
    def generation(self) -> int:
        """Grows when the keys change."""
        return self.watched.generation

    async def keys(self, kid: str | None) -> Keys:
        """Returns the keys of the file."""
        return self.watched.value


class UrlKeys:
    """Keys from an https URL, kept; fetched again now and then, and for an unknown `kid`, at most every 10 s.

    Lives on one event loop; fetches in a thread, and owns a task per fetch in the background, which ends by itself.
    Where the provider cannot be reached the keys stay in use for a day.

    Args:
        url: https.
        ca: PEM file of authorities; None: the system's.
        on_failure: told of each fetch that failed.
        fetch: from URL to content; blocking.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        url: str,
        ca: Path | None,
        on_failure: Callable[[], None],
        fetch: Callable[[str, ssl.SSLContext], bytes] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        try:
            self._context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"auth.oidc.jwks_ca {ca} cannot be used: {error.strerror}") from error
        self._on_failure = on_failure
        self._fetch = fetch or fetch_https
        self._clock = clock
        self._lock = asyncio.Lock()
        self._keys: Keys | None = None
        self._fetched_at = 0.0
        self._tried_at: float | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self.generation = 0

    async def keys(self, kid: str | None) -> Keys:
        """Returns the keys, fetched anew where `kid` is unknown, and in the background where they are old."""
        if not self._knows(kid):
            async with self._lock:
                if not self._knows(kid) and self._may_look():
                    await self._look()
        elif self._clock() - self._fetched_at > _REFRESH_S and self._may_look():
            self._refreshing = asyncio.create_task(self._look())
        keys = self._keys
        if keys is None or self._clock() - self._fetched_at > _MAX_AGE_S:
            raise UnavailableError("the identity provider's keys cannot be fetched; try again later")
        return keys

    def _knows(self, kid: str | None) -> bool:
        return self._keys is not None and (kid is None or kid in self._keys)

    def _may_look(self) -> bool:
        if self._tried_at is not None and self._clock() - self._tried_at < _RETRY_S:
            return False
        self._tried_at = self._clock()
        return True

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(2 * _FETCH_TIMEOUT_S):
                keys = parse_keys(await asyncio.to_thread(self._fetch, self._url, self._context))
        except (ConfigError, OSError, TimeoutError, urllib.error.URLError, ValueError) as error:
            logger.error("the OIDC keys of %s cannot be fetched: %s", self._url, error)
            self._on_failure()
            return
        self._fetched_at = self._clock()
        self._keys = keys
        self.generation += 1


class TokenVerifier:
    """Verifies JWTs: signature, issuer, audience, expiry, and nothing left to the token's own taste."""

    def __init__(self, config: OidcConfig, source: KeySource) -> None:
        self._config = config
        self._source = source

    @property
    def generation(self) -> int:
        """Grows when a verdict may change."""
        return self._source.generation

    async def verify(self, token: str) -> Claims:
        """Returns what a token says.

        Raises:
            UnauthenticatedError: it is not valid here and now; the text quotes nothing of it.
            UnavailableError: the provider's keys cannot be had.
        """
        kid, algorithm = self._header(token)
        keys = await self._source.keys(kid)
        fitting = [key for key in _candidates(keys, kid) if key.key_type == _KEY_TYPES[algorithm]]
        if len(fitting) != 1:
            raise UnauthenticatedError(_REJECTED)
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                fitting[0].key,
                algorithms=[algorithm],
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=self._config.leeway_s,
                options={"require": ["exp", "iss", "aud", "sub"], "verify_iat": False},
            )
        except jwt.ExpiredSignatureError:
            raise UnauthenticatedError("the token has expired; get a new one from the identity provider") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise UnauthenticatedError(_REJECTED) from None
        return self._claims(claims)

    def _header(self, token: str) -> tuple[str | None, str]:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise UnauthenticatedError(_REJECTED) from None
        kid, algorithm = header.get("kid"), header.get("alg")
        if algorithm not in self._config.algorithms or not (kid is None or isinstance(kid, str)):
            raise UnauthenticatedError(_REJECTED)
        return kid, str(algorithm)

    def _claims(self, claims: Mapping[str, Any]) -> Claims:
        subject = claims["sub"]
        if not isinstance(subject, str) or not 1 <= len(subject) <= 256 or not subject.isprintable():
            raise UnauthenticatedError(_REJECTED)
        groups = claims.get(self._config.groups_claim, [])
        named = [group for group in groups if isinstance(group, str)] if isinstance(groups, list) else []
        return Claims(subject, tuple(named[:_MAX_GROUPS]), float(claims["exp"]) + self._config.leeway_s)


def parse_keys(content: bytes) -> Keys:
    """Returns the public signing keys of a JWK set; symmetric keys and unknown kinds are left out.

    Raises:
        ConfigError: it is not a JWK set, or holds no such key.
    """
    try:
        entries = json.loads(content)["keys"]
        keys = [_key(entry) for entry in entries]
    except (AttributeError, ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError("the OIDC keys are not a JWK set") from None
    by_id: dict[str | None, tuple[jwt.PyJWK, ...]] = {}
    for key in keys:
        if key is not None:
            by_id[key.key_id] = (*by_id.get(key.key_id, ()), key)
    if not by_id:
        raise ConfigError(f"the OIDC keys hold no key for a signature of the kinds {sorted(_KEY_TYPES)}")
    return by_id


def _key(entry: Mapping[str, Any]) -> jwt.PyJWK | None:
    if entry.get("kty") not in _KEY_TYPES.values() or entry.get("use", "sig") != "sig" or "d" in entry:
        return None
    algorithm = {kind: name for name, kind in _KEY_TYPES.items()}[entry["kty"]]
    if entry.get("alg", algorithm) != algorithm:
        return None
    try:
        return jwt.PyJWK(dict(entry), algorithm)
    except jwt.PyJWTError:
        return None


def _candidates(keys: Keys, kid: str | None) -> tuple[jwt.PyJWK, ...]:
    """Returns the keys named `kid`; for a token that names none, all of them."""
    return keys.get(kid, ()) if kid is not None else tuple(key for named in keys.values() for key in named)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def fetch_https(url: str, context: ssl.SSLContext) -> bytes:
    """Returns what an https URL holds, at most 1 MiB; follows no redirect. Blocking, at most some seconds.

    Raises:
        OSError: it cannot be fetched, the server is not who it should be, or it is too large.
    """
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirect)
    with opener.open(url, timeout=_FETCH_TIMEOUT_S) as answer:
        content: bytes = answer.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise OSError(f"more than {_MAX_BYTES} bytes")
    return content

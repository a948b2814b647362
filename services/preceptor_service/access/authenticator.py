"""`Authenticator`: from what a caller shows to who it is. Anything unknown is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from preceptor.errors import UnauthenticatedError
from preceptor_service.access.access_file import AccessTable, parse_access
from preceptor_service.access.caller import UNRESTRICTED, Caller
from preceptor_service.access.certificates import PeerCertificate
from preceptor_service.access.oidc import FileKeys, KeySource, TokenVerifier, UrlKeys
from preceptor_service.access.watched import Refreshable, Watched
from preceptor_service.config import AuthConfig, OidcConfig

_MAX_TOKEN = 16 * 1024


@dataclass(frozen=True)
class Credentials:
    """What one call shows: a bearer token, a client certificate that TLS verified, both, or neither."""

    token: str | None = field(default=None, repr=False)
    certificate: PeerCertificate | None = None


class Authenticator:
    """Knows callers by the access file, an OIDC provider and client certificates.

    Args:
        config: None where everybody may do everything; then a certificate only gives the caller a name.
        on_failure: told, by the name of the source, of changed files or keys that cannot be used.

    Raises:
        ConfigError: the access file or the keys cannot be used.
    """

    def __init__(self, config: AuthConfig | None, on_failure: Callable[[str], None]) -> None:
        self._table: Watched[AccessTable] | None = None
        self._verifier: TokenVerifier | None = None
        self.refreshables: Sequence[Refreshable] = ()
        if config is None:
            return
        path = config.access_file
        self._table = Watched(
            "access file", [path], lambda contents: parse_access(contents[0], path), lambda: on_failure("access_file")
        )
        self.refreshables = (self._table,)
        if config.oidc is not None:
            source = _key_source(config.oidc, lambda: on_failure("oidc_keys"))
            self._verifier = TokenVerifier(config.oidc, source)
            if isinstance(source, FileKeys):
                self.refreshables = (self._table, source.watched)

    @property
    def is_required(self) -> bool:
        """Whether callers have to show who they are."""
        return self._table is not None

    @property
    def generation(self) -> int:
        """Grows whenever an earlier verdict may no longer hold."""
        generations = (source.generation for source in (self._table, self._verifier) if source is not None)
        return sum(generations)

    async def authenticate(self, credentials: Credentials) -> Caller:
        """Returns who shows `credentials`. A token that is shown decides, whatever the certificate says.

        Raises:
            UnauthenticatedError: nothing was shown, or it is not valid now; the text quotes nothing of it.
            UnavailableError: the identity provider cannot be reached.
        """
        certificate = credentials.certificate
        if self._table is None:
            return UNRESTRICTED if certificate is None else Caller(f"cert:{certificate.name}", None)
        if credentials.token is not None:
            return await self._by_token(credentials.token, self._table.value)
        if certificate is None:
            raise UnauthenticatedError(
                "the call shows no credentials; send the metadata 'authorization: Bearer <token>'"
            )
        if certificate.expires_at <= time.time():
            raise UnauthenticatedError("the client certificate has expired; connect with a new one")
        identity = f"cert:{certificate.name}"
        return Caller(identity, self._table.value.grants(identity), certificate.expires_at)

    async def _by_token(self, token: str, table: AccessTable) -> Caller:
        if len(token) > _MAX_TOKEN:
            raise UnauthenticatedError(f"the token has {len(token)} characters; at most {_MAX_TOKEN} can be one")
        owner = table.owner(token)
        if owner is not None:
            if owner.expires_at <= time.time():
                raise UnauthenticatedError("the token has expired; ask the operator for a new one")
            return Caller(owner.identity, table.grants(owner.identity), owner.expires_at)
        if self._verifier is None or token.count(".") != 2:
            raise UnauthenticatedError("the token is not accepted; ask the operator for a valid one")
        claims = await self._verifier.verify(token)
        identity = f"oidc:{claims.subject}"
        return Caller(identity, table.grants(identity, claims.groups), claims.expires_at)


def _key_source(config: OidcConfig, on_failure: Callable[[], None]) -> KeySource:
    if config.jwks_file is not None:
        return FileKeys(config.jwks_file, on_failure)
    return UrlKeys(config.jwks_url or "", config.jwks_ca, on_failure)

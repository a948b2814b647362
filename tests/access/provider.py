"""An identity provider: keys, and tokens signed with them or with something else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://issuer.example"
AUDIENCE = "preceptor"


class Provider:
    """Signs with one RSA key under `kid`, and publishes it."""

    def __init__(self, kid: str = "first") -> None:
        self.kid = kid
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)

    @property
    def jwk(self) -> dict[str, Any]:
        published: dict[str, Any] = jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        return {**published, "kid": self.kid, "alg": "RS256", "use": "sig"}

    @property
    def public_pem(self) -> bytes:
        return self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def token(self, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        return jwt.encode(claims_of(**claims), self._key, "RS256", headers={"kid": self.kid, **(header or {})})

    def unsigned(self, **claims: Any) -> str:
        return jwt.encode(claims_of(**claims), "", "none", headers={"kid": self.kid})

    def signed_with_the_public_key(self, **claims: Any) -> str:
        """HS256 with the public key as its secret, put together by hand: PyJWT refuses to."""

        signed = _segment({"alg": "HS256", "typ": "JWT", "kid": self.kid}) + "." + _segment(claims_of(**claims))
        mac = hmac.digest(self.public_pem, signed.encode(), hashlib.sha256)
        return f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def elliptic(kid: str) -> tuple[ec.EllipticCurvePrivateKey, dict[str, Any]]:
    key = ec.generate_private_key(ec.SECP256R1())
    return key, {**jwt.algorithms.ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid}


def edwards(kid: str) -> tuple[ed25519.Ed25519PrivateKey, dict[str, Any]]:
    key = ed25519.Ed25519PrivateKey.generate()
    return key, {**jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid}


def claims_of(**changed: Any) -> dict[str, Any]:
    """Claims of alice for the next five minutes; None removes one."""
    now = time.time()
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "iat": int(now), "exp": int(now) + 300, **changed}
    return {name: value for name, value in claims.items() if value is not None}


def key_set(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def _segment(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()

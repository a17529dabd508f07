"""The embedded stack's token issuer: an ES256 key created at the first start, and its public half as a JWKS for Envoy.

`token-key.pem` signs. `jwks.json` holds its public half, and that of the key before it: tokens that are signed with it
stay valid until they expire or the key is changed again.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

ISSUER = "https://gotohotel.localhost"
AUDIENCE = "gotohotel"
LIFETIME_SECONDS = 12 * 3600

KEY, NEXT_KEY, KEY_SET = "token-key.pem", "token-key.next.pem", "jwks.json"


@dataclass(frozen=True)
class Issuer:
    """Another issuer of tokens, and where its keys are: an https URL, and the authority of its certificate."""

    name: str
    keys_url: str
    authority: Path


def make_key(folder: Path) -> None:
    """Creates the key pair if there is none."""
    if not ((folder / KEY).exists() and (folder / KEY_SET).exists()):
        _write_key(folder / KEY)
        _write_key_set(folder, [_public(folder / KEY)])


def announce_next_key(folder: Path) -> None:
    """Creates the next key, and adds its public half to the key set; nothing is signed with it yet."""
    _write_key(folder / NEXT_KEY)
    _write_key_set(folder, [*_keys(folder)[-2:], _public(folder / NEXT_KEY)])


def use_next_key(folder: Path) -> None:
    """Signs with the next key from now on. Tokens of the key before it stay valid."""
    before = _current(folder)
    (folder / NEXT_KEY).replace(folder / KEY)
    _write_key_set(folder, [before, _public(folder / KEY)])


def mint(folder: Path, *, subject: str, role: str, key: str = KEY, seconds: int = LIFETIME_SECONDS) -> str:
    """A token for this subject and role, valid for twelve hours or as long as given. Raises FileNotFoundError before
    the first start.
    """
    return sign((folder / key).read_text(), key_id(folder, key), subject=subject, role=role, seconds=seconds)


def sign(key: str, kid: str, *, subject: str, role: str, seconds: int = LIFETIME_SECONDS) -> str:
    """A token, signed with a private key in PEM that the key set holds under this id."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "role": role, "iat": now, "exp": now + seconds}
    return jwt.encode(claims, _private_key(key.encode()), "ES256", headers={"kid": kid})


def public_key(pem: bytes) -> dict[str, Any]:
    """The entry in a key set of a private key, or of a certificate. Raises ValueError, TypeError for another kind."""
    if b"CERTIFICATE" in pem:
        return _entry(x509.load_pem_x509_certificate(pem).public_key())
    return _entry(_private_key(pem))


def key_id(folder: Path, key: str = KEY) -> str:
    """The id under which a key is in the key set."""
    public = _public(folder / key)
    return next(str(each["kid"]) for each in _keys(folder) if each["x"] == public["x"])


@lru_cache(maxsize=8)
def _private_key(pem: bytes) -> Any:
    """Reading it takes longer than signing with it."""
    return serialization.load_pem_private_key(pem, None)


def _keys(folder: Path) -> list[dict[str, Any]]:
    keys: list[dict[str, Any]] = json.loads((folder / KEY_SET).read_text())["keys"]
    return keys


def _current(folder: Path) -> dict[str, Any]:
    """The entry of the key that signs."""
    wanted = key_id(folder)
    return next(each for each in _keys(folder) if each["kid"] == wanted)


def _public(private: Path) -> dict[str, Any]:
    return public_key(private.read_bytes())


def _entry(key: object) -> dict[str, Any]:
    public_half = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey) else key
    if not isinstance(public_half, ec.EllipticCurvePublicKey) or not isinstance(public_half.curve, ec.SECP256R1):
        raise TypeError("tokens are signed with a key of P-256")
    public = json.loads(ECAlgorithm.to_jwk(public_half))
    return {**public, "kid": hashlib.sha256(public["x"].encode()).hexdigest()[:16], "alg": "ES256", "use": "sig"}


def _write_key(file: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    file.touch(mode=0o600)
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def _write_key_set(folder: Path, keys: list[dict[str, Any]]) -> None:
    fresh = folder / "jwks.new"  # renamed when it is complete
    fresh.write_text(json.dumps({"keys": keys}))
    fresh.replace(folder / KEY_SET)

"""The laptop's token issuer: an ES256 key created at the first start, and its public half as a JWKS for Envoy."""

import json
import time
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

ISSUER = "https://gotohotel.localhost"
AUDIENCE = "gotohotel"
KEY_ID = "laptop"
LIFETIME_SECONDS = 12 * 3600


def make_key(folder: Path) -> Path:
    """Creates the key pair if there is none; returns the JWKS file."""
    private, jwks = folder / "token-key.pem", folder / "jwks.json"
    if not (private.exists() and jwks.exists()):
        key = ec.generate_private_key(ec.SECP256R1())
        private.touch(mode=0o600)
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        public = json.loads(ECAlgorithm.to_jwk(key.public_key()))
        jwks.write_text(json.dumps({"keys": [{**public, "kid": KEY_ID, "alg": "ES256", "use": "sig"}]}))
    return jwks


def mint(folder: Path, *, subject: str, role: str) -> str:
    """A token for this subject and role, valid for twelve hours. Raises FileNotFoundError before the first start."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": subject, "role": role, "iat": now, "exp": now + LIFETIME_SECONDS}
    return jwt.encode(claims, (folder / "token-key.pem").read_text(), "ES256", headers={"kid": KEY_ID})

"""Signatures of messages (Ed25519, RFC 8032): who is given a message by others can tell who wrote it.

A message has a field `signature`. It covers the fields with lower numbers, and what the message is about. Fields with
higher numbers are those of later releases, and are not covered.
"""

import hashlib
import json

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import Message

PEM = "-----BEGIN "


class SigningKey:
    """Signs. Made from a secret text with at least 128 bits of chance, or a private key in PEM.

    Raises ValueError if the PEM is damaged or holds a key of another kind.
    """

    def __init__(self, secret: str) -> None:
        if secret.startswith(PEM):
            key = serialization.load_pem_private_key(secret.encode(), None)
            if not isinstance(key, Ed25519PrivateKey):
                raise ValueError("is a key of another kind than Ed25519")
            self._key = key
        else:
            self._key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(secret.encode()).digest())

    @property
    def public(self) -> str:
        """What a VerifyKey needs, in hexadecimal."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, message: Message, *about: object) -> None:
        """Sets the message's signature."""
        message.signature = self._key.sign(_covered(message, about))  # type: ignore[attr-defined]


class VerifyKey:
    """Checks signatures. Made from a public key in hexadecimal, or a certificate for it in PEM: only its key is used.

    Raises ValueError if the text is neither, or the key is of another kind.
    """

    def __init__(self, public: str) -> None:
        if public.startswith(PEM):
            key = x509.load_pem_x509_certificate(public.encode()).public_key()
            if not isinstance(key, Ed25519PublicKey):
                raise ValueError("is a key of another kind than Ed25519")
            self._key = key
        else:
            self._key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))

    def has_signed(self, message: Message, *about: object) -> bool:
        """Whether the owner of the key has signed exactly this message about exactly this."""
        try:
            self._key.verify(message.signature, _covered(message, about))  # type: ignore[attr-defined]
        except InvalidSignature:
            return False
        return True


def _covered(message: Message, about: tuple[object, ...]) -> bytes:
    fields = message.DESCRIPTOR.fields
    end = message.DESCRIPTOR.fields_by_name["signature"].number
    values = [getattr(message, field.name) for field in fields if field.number < end]
    return json.dumps([*map(str, about), *values]).encode()

"""Signatures of messages."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from gotohotel.order.v1.events_pb2 import Booking
from gotohotel.signatures import SigningKey, VerifyKey

KEY = SigningKey("a secret of this test, 32 letters")
OTHER = SigningKey("another secret of this test, too")


def signed(key: SigningKey, *about: object) -> Booking:
    """A signed booking."""
    booking = Booking(
        name="Kim", room_type="Prime", guest_cnt=2, check_in="2026-05-01", check_out="2026-05-03", owner="a"
    )
    key.sign(booking, *about)
    return booking


def test_who_has_the_public_key_can_check_a_signature() -> None:
    """It survives the wire, and fields of a later release, which are not covered."""
    received = Booking.FromString(signed(KEY, "order", "KRW", 1000).SerializeToString() + b"\xfa\x01\x01x")

    assert VerifyKey(KEY.public).has_signed(received, "order", "KRW", 1000)
    assert not VerifyKey(OTHER.public).has_signed(received, "order", "KRW", 1000)


@pytest.mark.parametrize(
    "about",
    [("other", "KRW", 1000), ("order", "USD", 1000), ("order", "KRW", 1), ("order", "KRW"), ("order", "KR", "W1000")],
)
def test_a_signature_is_about_one_thing(about: tuple[object, ...]) -> None:
    """It does not hold for another order, currency or amount."""
    assert not VerifyKey(KEY.public).has_signed(signed(KEY, "order", "KRW", 1000), *about)


@pytest.mark.parametrize("field", [field.name for field in Booking.DESCRIPTOR.fields if field.name != "signature"])
def test_every_field_of_a_booking_is_covered(field: str) -> None:
    """A changed field makes the signature void."""
    booking = signed(KEY, "order")
    setattr(booking, field, getattr(booking, field) + (1 if field == "guest_cnt" else "x"))

    assert not VerifyKey(KEY.public).has_signed(booking, "order")


@pytest.mark.parametrize("signature", [b"", b"x", b"\0" * 64])
def test_no_signature_is_no_signature(signature: bytes) -> None:
    """An empty, short or invented one does not hold."""
    assert not VerifyKey(KEY.public).has_signed(Booking(name="Kim", signature=signature), "order")


def test_keys_may_be_in_pem() -> None:
    """As Helm's functions and cert-manager make them: the public half is in a certificate."""
    private = ed25519.Ed25519PrivateKey.generate()
    signing, checking = SigningKey(private_pem(private)), VerifyKey(certificate(private))

    assert checking.has_signed(signed(signing, "order"), "order")
    assert not VerifyKey(KEY.public).has_signed(signed(signing, "order"), "order")
    assert VerifyKey(signing.public).has_signed(signed(signing, "order"), "order")


def test_a_key_of_another_kind_is_refused() -> None:
    """Not at the first order: at the start."""
    private = ec.generate_private_key(ec.SECP256R1())

    for make, text in ((SigningKey, private_pem(private)), (VerifyKey, certificate(private))):
        with pytest.raises(ValueError, match="another kind"):
            make(text)


def private_pem(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """The key in PEM."""
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()


def certificate(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """A self-signed certificate of the key's public half, in PEM."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "orders")])
    begins = datetime(2026, 1, 1, tzinfo=UTC)
    signed_by = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=1))
        .sign(key, signed_by)
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()

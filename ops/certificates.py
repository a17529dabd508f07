"""The stack's own certificate authority: a certificate for each of its parts, made at the first start."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gotohotel.rpc.tls import AUTHORITY, CERTIFICATE, DOMAIN, KEY

LIFETIME = timedelta(days=365)
RENEW_BEFORE = timedelta(days=30)
AUTHORITY_LIFETIME = timedelta(days=3650)

_PrivateKey = ec.EllipticCurvePrivateKey


def make(folder: Path, parts: Iterable[str]) -> None:
    """Creates the authority and the parts' certificates that are missing, damaged, or expire within 30 days.

    Each part has a folder of its own in `folder`; its certificate is for `<part>.gotohotel`.
    """
    authority = folder / "authority"
    if _usable(authority) is None:
        _write(authority, _signed("GotoHotel authority", AUTHORITY_LIFETIME))
    issuer = x509.load_pem_x509_certificate((authority / CERTIFICATE).read_bytes())
    for part in parts:
        certificate, trusted = _usable(folder / part), folder / part / AUTHORITY
        is_ours = certificate is not None and _is_for(certificate, f"{part}.{DOMAIN}", issuer)
        if not is_ours or not trusted.exists() or trusted.read_bytes() != _pem(issuer):
            issue(authority, folder / part, f"{part}.{DOMAIN}")


def issue(authority: Path, folder: Path, name: str) -> None:
    """Writes a new certificate of an authority for this DNS name into a folder."""
    key = serialization.load_pem_private_key((authority / KEY).read_bytes(), None)
    certificate = x509.load_pem_x509_certificate((authority / CERTIFICATE).read_bytes())
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError("the authority's key is of another kind")
    _write(folder, _signed(name, LIFETIME, issuer=(key, certificate)))
    _replace(folder / AUTHORITY, _pem(certificate))


def _usable(folder: Path) -> x509.Certificate | None:
    """The certificate, if it can be read, belongs to its key, and does not expire soon."""
    try:
        key = serialization.load_pem_private_key((folder / KEY).read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    fits = certificate.public_key() == key.public_key()
    return certificate if fits and certificate.not_valid_after_utc - datetime.now(UTC) > RENEW_BEFORE else None


def _is_for(certificate: x509.Certificate, name: str, issuer: x509.Certificate) -> bool:
    """Whether it was issued for this name by this authority."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.DNSName) == [name]


def _signed(
    name: str, lifetime: timedelta, *, issuer: tuple[_PrivateKey, x509.Certificate] | None = None
) -> tuple[_PrivateKey, x509.Certificate]:
    """A new key and its certificate, of this issuer or (None) self-signed, as an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer_key, issuer_name = (issuer[0], issuer[1].subject) if issuer else (key, subject)
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # other clocks may be behind
        .not_valid_after(now + lifetime)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
    )
    if issuer:
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), False)
    return key, builder.sign(issuer_key, hashes.SHA256())


def _write(folder: Path, made: tuple[_PrivateKey, x509.Certificate]) -> None:
    key, certificate = made
    folder.mkdir(parents=True, exist_ok=True)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    _replace(folder / KEY, private, mode=0o600)
    _replace(folder / CERTIFICATE, _pem(certificate))


def _replace(file: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Writes a file in one step."""
    fresh = file.with_suffix(".new")
    fresh.touch(mode=mode)
    fresh.write_bytes(content)
    fresh.replace(file)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)

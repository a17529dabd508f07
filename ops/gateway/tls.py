"""TLS settings of Envoy's listeners and clusters."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from gotohotel.rpc.tls import AUTHORITY, CERTIFICATE, DOMAIN, KEY


def mutual_tls(folder: object, *, peers: Iterable[str]) -> str:
    """The settings of one end of a mutual TLS connection: its own certificate, and the parts that it accepts."""
    names = [{"san_type": "DNS", "matcher": {"exact": f"{peer}.{DOMAIN}"}} for peer in peers]
    trusted = {"trusted_ca": {"filename": f"{folder}/{AUTHORITY}"}, "match_typed_subject_alt_names": names}
    return json.dumps(
        {"tls_certificates": [_certificate(folder)], "validation_context": trusted, "alpn_protocols": ["h2"]}
    )


def transport(folder: Path | None) -> str:
    """How the public listener's connections are secured."""
    if folder is None:
        kind = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
        return json.dumps({"name": "envoy.transport_sockets.raw_buffer", "typed_config": {"@type": kind}})
    context = {"tls_certificates": [_certificate(folder)], "alpn_protocols": ["h2", "http/1.1"]}
    return json.dumps(tls_socket("Downstream", context))


def _certificate(folder: object) -> dict[str, object]:
    return {
        "certificate_chain": {"filename": f"{folder}/{CERTIFICATE}"},
        "private_key": {"filename": f"{folder}/{KEY}"},
    }


def tls_socket(side: str, context: Mapping[str, object], **options: object) -> dict[str, object]:
    kind = f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext"
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": kind, "common_tls_context": context, **options},
    }

"""Mutual TLS between the parts of the system: each proves its name with a certificate.

A part's folder holds `tls.crt` and `tls.key`, its own, and `ca.crt`, the authority that it trusts: the names in a
Kubernetes Secret of cert-manager. They are read when the part starts.
"""

from pathlib import Path
from typing import Any

import grpc

DOMAIN = "gotohotel"  # order_svc's certificate is for order.gotohotel
GATEWAY = f"gateway.{DOMAIN}"  # the gateway's public listener, as a client of the services
EGRESS = f"egress.{DOMAIN}"  # its egress listener

CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"


def server_credentials(folder: Path) -> grpc.ServerCredentials:
    """Credentials of a server that accepts only clients with a certificate of its authority."""
    pair = (folder / KEY).read_bytes(), (folder / CERTIFICATE).read_bytes()
    return grpc.ssl_server_credentials([pair], (folder / AUTHORITY).read_bytes(), require_client_auth=True)


def client_credentials(folder: Path) -> grpc.ChannelCredentials:
    """Credentials of a client; the server must have a certificate of the same authority for the name it is called."""
    return grpc.ssl_channel_credentials(
        (folder / AUTHORITY).read_bytes(), (folder / KEY).read_bytes(), (folder / CERTIFICATE).read_bytes()
    )


def peer_name(context: Any) -> str:
    """The name in the client's certificate, such as GATEWAY."""
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return names[0].decode() if names else ""

"""A hotel whose parts run elsewhere, as in Kubernetes: what the operator's commands need to reach them.

The environment says where they are:

GOTOHOTEL_SECRETS          a folder with the passwords and keys, a file for each
GOTOHOTEL_HOME             a folder for the archive of events
GOTOHOTEL_POSTGRES_URL     postgresql://host:port, and perhaps ?sslmode=…; role, password and database are added
GOTOHOTEL_NATS_URL         nats://host:port or tls://host:port; user and password are added
GOTOHOTEL_GATEWAY_URL      the gateway's
GOTOHOTEL_HOST_PREFIX      the host of a service is this and its name, as in hotel-order
GOTOHOTEL_STREAM_MIB       the size of a new stream of events
GOTOHOTEL_STREAM_REPLICAS  how many NATS servers keep a copy of each stream
"""

import asyncio
import json
import os
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import nats.errors
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from gotohotel.rpc.tls import CERTIFICATE, KEY
from ops import gateway, tokens
from ops.addresses import Addresses
from ops.credentials import Credentials, MountedCredentials
from ops.errors import StackError
from ops.provisioning import provision
from ops.services import OPERATOR, SERVICES, nats_password, part
from ops.settings import PORTS, SECRETS, home_setting, issuer_setting, origins_setting, stream_bytes, stream_replicas

SIGNS_TOKENS = "token_key"  # the name of the key among the secrets
# Where the gateway has its certificates and the key sets' certificates; the chart mounts them there.
TLS = Path("/etc/gotohotel/tls")
TOKEN_CERTIFICATES = Path("/etc/gotohotel/token-certificates")
METRICS_PORT = 9090  # where Prometheus reads the gateway's statistics
NOT_YET = (
    *(OSError, TimeoutError, nats.errors.Error),
    *(asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, httpx.TransportError, httpx.HTTPStatusError),
)
PATIENCE_SECONDS = 300.0  # everything is started at once


class Cluster(Addresses):
    """The parts of a hotel in a cluster."""

    @classmethod
    def from_environment(cls) -> "Cluster | None":
        """None unless GOTOHOTEL_SECRETS is set: then the parts are a stack on this machine."""
        return cls(home_setting(), PORTS) if os.environ.get(SECRETS) else None

    @cached_property
    def credentials(self) -> Credentials:
        """The mounted passwords and keys."""
        return MountedCredentials(Path(os.environ[SECRETS]))

    @property
    def gateway_url(self) -> str:
        """The gateway's URL."""
        return _setting("GATEWAY_URL")

    @property
    def checks_gateway(self) -> bool:
        """Not here: inside the cluster it has another name than the one that its certificate is for."""
        return False

    def database_url(self, database: str, role: str, *, caller: str = "") -> str:  # noqa: ARG002 - nobody detours here
        """The URL of a database for a role. Raises StackError for the superuser's, if its password is not ours."""
        if role not in self.credentials.all():
            raise StackError(f"This needs PostgreSQL's role {role}, whose password is not among the secrets.")
        return _url(_setting("POSTGRES_URL"), role, self.credentials[role], path=f"/{database}")

    def nats_url(self, user: str = OPERATOR) -> str:
        """The URL of NATS for a service or an operator."""
        return _url(_setting("NATS_URL"), user, self.credentials[nats_password(user)])

    def token(self, *, subject: str, role: str) -> str:
        """A token that the gateway accepts."""
        key = self.credentials[SIGNS_TOKENS]
        return tokens.sign(key, tokens.public_key(key.encode())["kid"], subject=subject, role=role)

    def copy_keys(self, folder: Path) -> None:
        """Writes them as a stack on one machine has them, where a backup is restored; it makes certificates itself."""
        passwords = dict(self.credentials.all())
        key = passwords.pop(SIGNS_TOKENS)
        (folder / "tls").mkdir(parents=True)
        (folder / "secrets.json").write_text(json.dumps(passwords))
        (folder / tokens.KEY).write_text(key)
        (folder / tokens.KEY_SET).write_text(json.dumps({"keys": [tokens.public_key(key.encode())]}))

    def migrate(self) -> None:
        """Updates roles, databases, schemas, streams and consumers to this release. Safe to repeat.

        Waits up to five minutes for PostgreSQL and NATS.
        """
        self.credentials.mint()
        replicas = stream_replicas()
        for attempt in patiently():
            with attempt:
                asyncio.run(provision(self, stream_bytes=stream_bytes(self.home), stream_replicas=replicas))


def patiently() -> Retrying:
    """Retries what needs parts that may have been started at the same time, for five minutes."""
    return Retrying(
        retry=retry_if_exception_type(NOT_YET),
        stop=stop_after_delay(PATIENCE_SECONDS),
        wait=wait_random(0.5, 1.5),
        reraise=True,
    )


def write_gateway(folder: Path) -> None:
    """Writes the configuration of a gateway in a cluster: envoy.yaml, routes.yaml and jwt.yaml. It needs no secret.

    Tokens are accepted whose key is in one of the certificates of TOKEN_CERTIFICATES, or of the issuer in the settings.
    """
    issuers = [issuer] if (issuer := issuer_setting()) else []
    public = TLS / "public"
    services = {name: (_setting("HOST_PREFIX") + part(name), service.port) for name, service in SERVICES.items()}
    gateway.write(
        folder,
        {
            "ADMIN_SOCKET": folder / "envoy.sock",
            "PAGES_SOCKET": folder / "pages.sock",
            "PUBLIC_HOST": "0.0.0.0",  # noqa: S104 - in a pod of its own
            "PUBLIC_PORT": PORTS["gateway"],
            "EGRESS_HOST": "0.0.0.0",  # noqa: S104 - who has no certificate gets no further
            "EGRESS_PORT": PORTS["egress"],
            "GATEWAY_TLS": TLS / "gateway",
            "EGRESS_TLS": TLS / "egress",
            "JWT_FILE": folder / "jwt.yaml",
        },
        services,
        public_tls=public if all((public / name).exists() for name in (CERTIFICATE, KEY)) else None,
        issuers=issuers,
        origins=origins_setting(),
        metrics_port=METRICS_PORT,
    )
    keys = [tokens.public_key(file.read_bytes()) for file in sorted(TOKEN_CERTIFICATES.glob("*.crt"))]
    (folder / "jwt.yaml").write_text(gateway.render_jwt(json.dumps({"keys": keys}), SERVICES, issuers=issuers))


def _setting(name: str) -> str:
    value = os.environ.get(f"GOTOHOTEL_{name}", "")
    if not value:
        raise StackError(f"The setting GOTOHOTEL_{name} is missing.")
    return value


def _url(base: str, user: str, password: str, *, path: str = "") -> str:
    """A URL with the name and password of who connects."""
    parts = urlsplit(base)
    if not parts.hostname:
        raise StackError(f"{base!r} is not a URL as scheme://host:port.")
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc}", path=path or parts.path))

"""How the parts of a stack reach one another: ports, URLs, tokens, and each service's settings."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from gotohotel.signatures import SigningKey
from ops import kakao, page_store, tokens
from ops.credentials import Credentials
from ops.errors import StackError
from ops.services import OPERATOR, ORDER_SIGNING, SANDBOX, SERVICES, fingerprint_key, nats_password, part

KEYS = ("secrets.json", tokens.KEY, tokens.KEY_SET, "tls")  # in the home of a stack


@dataclass(frozen=True)
class Addresses:
    """A stack's folder and ports."""

    home: Path
    ports: Mapping[str, int]
    # (process, name of the port it calls) → another port to call instead, whose listener may cut the connection
    detours: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @cached_property
    def credentials(self) -> Credentials:
        """Passwords and keys."""
        return Credentials(self.home)

    @property
    def gateway_url(self) -> str:
        """The gateway's URL."""
        scheme, host = ("https", "localhost") if self.tls_folder("public").exists() else ("http", "127.0.0.1")
        return f"{scheme}://{host}:{self.ports['gateway']}"

    @property
    def checks_gateway(self) -> bool:
        """Whether the gateway's certificate is for the name in its URL."""
        return True

    @property
    def admin_socket(self) -> Path:
        """The socket of the gateway's admin interface: statistics, and the command that ends it."""
        return self.home / "envoy.sock"

    @property
    def database_sockets(self) -> Path:
        """The folder of PostgreSQL's socket. The name is short: a socket's path has at most 107 bytes."""
        return self.home / "pg"

    @property
    def archive(self) -> Path:
        """The folder of events that were moved out of the stream."""
        return self.home / "archive"

    def tls_folder(self, part_name: str) -> Path:
        """The folder of a part's certificate: of a service, `gateway`, `egress`, or (for its clients) `public`."""
        return self.home / "tls" / part_name

    def database_url(self, database: str, role: str, *, caller: str = "") -> str:
        """The URL of a database for a role. A service without a detour reaches it through a socket: that costs less."""
        known, port = f"{role}:{self.credentials[role]}", self.port("postgres", caller)
        if caller and (caller, "postgres") not in self.detours:
            return f"postgresql://{known}@/{database}?host={quote(str(self.database_sockets))}&port={port}"
        return f"postgresql://{known}@127.0.0.1:{port}/{database}"

    def nats_url(self, user: str = OPERATOR) -> str:
        """The URL of NATS for a service or an operator."""
        return f"nats://{user}:{self.credentials[nats_password(user)]}@127.0.0.1:{self.port('nats', user)}"

    def port(self, name: str, caller: str) -> int:
        """The port at which a caller reaches a part."""
        return self.detours.get((caller, name), self.ports[name])

    def token(self, *, subject: str, role: str) -> str:
        """A token that this stack's gateway accepts."""
        try:
            return tokens.mint(self.home, subject=subject, role=role)
        except FileNotFoundError:
            raise StackError("There is no key to sign tokens with yet: run `make up` first.") from None

    def copy_keys(self, folder: Path) -> None:
        """Copies passwords, keys and certificates into a new folder."""
        folder.mkdir()
        for name in KEYS:
            copy = shutil.copytree if (self.home / name).is_dir() else shutil.copy2
            copy(self.home / name, folder / name)

    def service_environment(self, name: str) -> dict[str, str]:
        """The settings of a service of this stack; they contain its own secrets only."""
        service = SERVICES[name]
        prefix = part(name).upper()
        settings = {
            "PORT": str(self.ports[part(name)]),
            "DATABASE_URL": self.database_url(name, name, caller=name),
            "NATS_URL": self.nats_url(name),
            "TLS_FOLDER": str(self.tls_folder(part(name))),
        }
        if service.calls_pay:
            settings["PAY_TARGET"] = f"127.0.0.1:{self.port('egress', name)}"
        if service.has_fingerprint_key:
            settings["FINGERPRINT_KEY"] = self.credentials[fingerprint_key(name)]
        if service.signs_orders:
            settings["SIGNING_KEY"] = self.credentials[ORDER_SIGNING]
        if service.checks_orders:
            settings["ORDER_KEY"] = SigningKey(self.credentials[ORDER_SIGNING]).public
        if service.has_card_processor:
            settings["SANDBOX_DATABASE_URL"] = self.database_url(SANDBOX, SANDBOX, caller=name)
        if service.buckets:
            settings["STORE"] = page_store.wanted()
        if service.sends_messages and kakao.is_wanted():
            settings |= {
                "KAKAO": "nhn",
                "NHN_URL": f"http://127.0.0.1:{self.port('kakao', name)}",
                "NHN_APP_KEY": kakao.APP_KEY,
                "NHN_SECRET_KEY": kakao.SECRET_KEY,
                "NHN_SENDER_KEY": kakao.SENDER_KEY,
                "NHN_SMS_SENDER_NO": "0212345678",
            }
        return {f"{prefix}_{key}": value for key, value in settings.items()}

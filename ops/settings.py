"""Where a stack stores files and listens, and how large its stream may grow: GOTOHOTEL_… environment variables."""

import os
import re
import shutil
import ssl
from pathlib import Path

from ops.errors import StackError
from ops.services import SERVICES, part
from ops.tokens import Issuer

# Where the passwords and keys are mounted, if a cluster runs the parts: see ops/cluster.py.
SECRETS = "GOTOHOTEL_SECRETS"

# Default ports; GOTOHOTEL_<NAME>_PORT overrides one.
PORTS = {
    "gateway": 8088,
    **{part(name): service.port for name, service in SERVICES.items()},
    "egress": 8085,
    "kakao": 8086,
    "nats": 8087,
    "postgres": 8089,
}
MIN_STREAM_BYTES, MAX_STREAM_BYTES = 256 * 1024**2, 16 * 1024**3
MAX_HOME_LENGTH = 85  # a socket path has at most 107 bytes, and supervisord appends its process id


def home_setting() -> Path:
    """GOTOHOTEL_HOME. It appears in configuration files where blanks, quotes and % have a special meaning."""
    text = os.environ.get("GOTOHOTEL_HOME") or ".run"
    try:
        home = Path(text).resolve()
        usable = not home.exists() or home.is_dir()
    except OSError:
        usable = False
    if not usable or not re.fullmatch(r"[\w./@+=:~-]+", str(home)):
        raise StackError(f"The setting GOTOHOTEL_HOME takes a folder without blanks, quotes and %, not {text[:100]!r}.")
    if len(str(home)) > MAX_HOME_LENGTH:
        raise StackError(f"The path {home} is too long for a socket in it; set GOTOHOTEL_HOME to a shorter one.")
    return home


def certificate_setting() -> tuple[Path, Path] | None:
    """GOTOHOTEL_TLS_CERTIFICATE and GOTOHOTEL_TLS_KEY: files in PEM, with which the gateway speaks TLS."""
    certificate, key = (_file_setting(f"GOTOHOTEL_TLS_{name}") for name in ("CERTIFICATE", "KEY"))
    if (certificate is None) != (key is None):
        raise StackError("The settings GOTOHOTEL_TLS_CERTIFICATE and GOTOHOTEL_TLS_KEY go together.")
    return (certificate, key) if certificate and key else None


def issuer_setting() -> Issuer | None:
    """An issuer whose tokens the gateway accepts beside the stack's own: GOTOHOTEL_OIDC_ISSUER, its name,
    GOTOHOTEL_OIDC_KEYS_URL, and GOTOHOTEL_OIDC_AUTHORITY, unless this machine trusts the certificate already.
    """
    name, keys_url = (os.environ.get(f"GOTOHOTEL_OIDC_{field}", "") for field in ("ISSUER", "KEYS_URL"))
    if not name and not keys_url:
        return None
    if not name or not re.fullmatch(r"https://[\w.-]+(:\d{1,5})?/[\w./-]*", keys_url):
        raise StackError("The settings GOTOHOTEL_OIDC_ISSUER and GOTOHOTEL_OIDC_KEYS_URL (https) go together.")
    authority = _file_setting("GOTOHOTEL_OIDC_AUTHORITY") or Path(ssl.get_default_verify_paths().cafile or "")
    return Issuer(name, keys_url, authority)


def origins_setting() -> list[str]:
    """GOTOHOTEL_CORS_ORIGINS: the origins whose web pages may call, separated by commas; * for all, empty for none."""
    origins = [origin.strip() for origin in os.environ.get("GOTOHOTEL_CORS_ORIGINS", "").split(",") if origin.strip()]
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[\w.-]+(:\d{1,5})?", origin):
            raise StackError(
                f"The setting GOTOHOTEL_CORS_ORIGINS takes origins as https://example.org, not {origin!r}."
            )
    return origins


def _file_setting(variable: str) -> Path | None:
    text = os.environ.get(variable, "")
    if text and not Path(text).is_file():
        raise StackError(f"The setting {variable} takes a file that exists, not {text!r}.")
    return Path(text).resolve() if text else None


def port_setting(name: str, default: int) -> int:
    """GOTOHOTEL_<NAME>_PORT."""
    variable = f"GOTOHOTEL_{name.upper()}_PORT"
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise StackError(f"The setting {variable} takes a port from 1 to 65535, not {text!r}.")
    return int(text)


def stream_bytes(home: Path) -> int:
    """The size limit of a new stream of events: a quarter of the free disk, or GOTOHOTEL_STREAM_MIB."""
    by_disk = min(max(shutil.disk_usage(home).free // 4, MIN_STREAM_BYTES), MAX_STREAM_BYTES)
    text = os.environ.get("GOTOHOTEL_STREAM_MIB", "")
    if not text:
        return by_disk
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise StackError(f"The setting GOTOHOTEL_STREAM_MIB takes a number of MiB, not {text!r}.")
    return int(text) * 1024**2


def stream_replicas() -> int:
    """How many NATS servers keep a copy of a new stream: GOTOHOTEL_STREAM_REPLICAS, 1, 3 or 5."""
    text = os.environ.get("GOTOHOTEL_STREAM_REPLICAS") or "1"
    if text not in ("1", "3", "5"):
        raise StackError(f"The setting GOTOHOTEL_STREAM_REPLICAS takes 1, 3 or 5, not {text!r}.")
    return int(text)

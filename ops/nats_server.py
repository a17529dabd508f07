"""The embedded NATS: its configuration, and a user for each service."""

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import nats
from nats.js import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from gotohotel.bus.streams import DEAD_LETTERS, EVENTS
from ops import ports
from ops.errors import StackError
from ops.services import OPERATOR, SERVICES, nats_password, part

START_SECONDS = 30

CONF = """\
host: {host}
port: {port}
{monitoring}
server_name: gotohotel
max_payload: 1MB
jetstream {{
  store_dir: "{home}/nats"
  # Not what limits the streams: their own sizes do.
  max_file_store: {disk_bytes}
  # An acknowledged event is on the disk, not only in its cache.
  sync_interval: always
}}
authorization {{
  users: [
{users}
  ]
}}
"""


def configuration(
    *, home: Path, port: int, passwords: Mapping[str, str], host: str = "127.0.0.1", monitoring_port: int | None = None
) -> str:
    """The server's configuration file. The users are OPERATOR and the services, each with its password.

    On the monitoring port, if there is one, it answers /healthz, and tells everybody its statistics.
    """
    may = {OPERATOR: {"publish": [">"], "subscribe": [">"]}, **{name: permissions(name) for name in SERVICES}}
    users = [{"user": name, "password": passwords[name], "permissions": may[name]} for name in may]
    disk_bytes = shutil.disk_usage(home).total
    return CONF.format(
        home=home,
        host=host,
        port=port,
        monitoring=f"http: {host}:{monitoring_port}" if monitoring_port else "",
        disk_bytes=disk_bytes,
        users="\n".join(f"    {json.dumps(user)}" for user in users),
    )


def permissions(service: str) -> dict[str, list[str]]:
    """A service may publish its own events, read from its own consumer, and read and write its own buckets; it can't
    change or empty a stream.
    """
    events, dead_letters = EVENTS.name, DEAD_LETTERS.name
    keeps = [
        subject
        for bucket in SERVICES[service].buckets
        for subject in (f"$JS.API.STREAM.INFO.KV_{bucket}", f"$JS.API.DIRECT.GET.KV_{bucket}.>", f"$KV.{bucket}.>")
    ]
    announces = [f"gotohotel.{part(service)}.v1.*"] if SERVICES[service].publishes else []
    return {
        "publish": [
            *announces,
            *keeps,
            f"dead.{service}",
            *(f"$JS.API.STREAM.{act}.{name}" for act in ("INFO", "CREATE") for name in (events, dead_letters)),
            *(f"$JS.API.CONSUMER.{act}.{events}.{service}" for act in ("INFO", "DURABLE.CREATE", "MSG.NEXT")),
            f"$JS.ACK.{events}.{service}.>",
        ],
        "subscribe": [f"_INBOX.{service}.>"],  # replies, and the events delivered to its consumer
    }


async def _ignore(_: Exception) -> None:
    """No log lines of the client: the exception that is raised says it."""


@asynccontextmanager
async def as_operator(url: str) -> AsyncIterator[JetStreamContext]:
    """A connection of the operator's. One that is lost must not be restored silently: messages would be missing."""
    client = await nats.connect(
        url,
        connect_timeout=3,
        allow_reconnect=False,
        max_reconnect_attempts=1,
        reconnect_time_wait=0.2,
        error_cb=_ignore,
    )
    try:
        yield client.jetstream()
    finally:
        await client.close()


@asynccontextmanager
async def of_a_stopped_stack(home: Path, secrets: Mapping[str, str]) -> AsyncIterator[JetStreamContext]:
    """Runs the NATS of a stack that does not run, to read its streams. Raises StackError if it does not answer."""
    if not (home / "nats").exists():
        raise StackError(f"There is no stream in {home}.")
    [port] = ports.reserve(1)
    operator = secrets[nats_password(OPERATOR)]
    # It may be of a release with fewer services: nobody else knows the operator's password.
    passwords = {user: secrets.get(nats_password(user), operator) for user in (OPERATOR, *SERVICES)}
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as conf:
        conf.write(configuration(home=home, port=port, passwords=passwords))
        conf.flush()
        program = Path(sys.executable).parent / "nats-server"
        server = await asyncio.create_subprocess_exec(program, "-c", conf.name, stderr=asyncio.subprocess.DEVNULL)
        try:
            async with asyncio.timeout(START_SECONDS):
                while not ports.accepts(port):  # noqa: ASYNC110 - it says so nowhere else
                    await asyncio.sleep(0.1)
            async with as_operator(f"nats://{OPERATOR}:{operator}@127.0.0.1:{port}") as js:
                yield js
        except TimeoutError:
            raise StackError(f"The NATS of {home} does not answer.") from None
        finally:
            server.terminate()
            await server.wait()


async def declare_streams(js: JetStreamContext, *, events_bytes: int, replicas: int = 1) -> None:
    """Creates missing streams; the operator decides the size of the events' stream, and how many servers keep a copy.

    Raises StackError if the server lacks the room, or if there are fewer servers.
    """
    for declared in (EVENTS.evolve(max_bytes=events_bytes), DEAD_LETTERS):
        stream = declared.evolve(num_replicas=replicas)
        try:
            await js.stream_info(str(stream.name))
        except NotFoundError:
            try:
                await js.add_stream(stream)
            except APIError as error:
                raise StackError(f"The stream {stream.name} can't be made: {error.description}.") from None

"""gRPC: the server's edge and the client's edge. Errors are translated here, and nowhere else for RPCs."""

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import grpc
import grpc.aio
from google.api import field_behavior_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from gotohotel import trace
from gotohotel.database import TRANSIENT
from gotohotel.domain import AlreadyExists, Conflict, DomainError, Invalid, NotFound, WrongState, new_id

logger = logging.getLogger(__name__)

# What Envoy puts on a request after it has checked the token, and removes from every request before.
SUBJECT_HEADER = "x-gotohotel-subject"
ROLE_HEADER = "x-gotohotel-role"
# What Envoy's egress listener puts on an error of its own when no connection took the call.
NEVER_SENT_HEADER = "x-gotohotel-never-sent"

DATABASE = "database"  # the name under which a health check asks for it
GUEST, DESK, SERVICE = "guest", "desk", "service"

MAX_CALL_SECONDS = 10.0
RESERVED_FOR_THE_ANSWER_SECONDS = 0.1
MESSAGE_LIMIT_BYTES = 1024 * 1024
MAX_ATTEMPTS = 3

SERVER_OPTIONS = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
]
CHANNEL_OPTIONS = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
]

_deadline: ContextVar[float] = ContextVar("deadline")

M = TypeVar("M", bound=Callable[..., Awaitable[Message]])
Response = TypeVar("Response", bound=Message)


class Unavailable(Exception):
    """A part that this call needs can't be reached now. Nothing that the caller can see has changed."""

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(Exception):
    """The deadline passed; the outcome of the call is unknown."""


class Overloaded(Exception):
    """Too many concurrent calls: no further ones are started."""


class Unauthenticated(Exception):
    """The call carries no identity."""


class PermissionDenied(Exception):
    """The caller's role may not make this call."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as the gateway's check of the token found."""

    subject: str
    role: str

    @property
    def owner(self) -> str | None:
        """Owner filter for queries; None means unrestricted (desk)."""
        return self.subject if self.role == GUEST else None


ANONYMOUS = Caller("", "")


def allow(*roles: str) -> Callable[[M], M]:
    """Marks a method as an RPC and says who may call it; no role at all means anybody, even without a token."""

    def mark(method: M) -> M:
        method.allowed_roles = frozenset(roles)  # type: ignore[attr-defined]
        return method

    return mark


def remaining_seconds() -> float:
    """How long the current call may still take, less what the answer needs."""
    return _deadline.get(time.monotonic() + MAX_CALL_SECONDS) - time.monotonic() - RESERVED_FOR_THE_ANSWER_SECONDS


# ---------------------------------------------------------------------------------------------- the server's edge


class RpcServer:
    """Serves implementations of services described by protobuf, with health and reflection."""

    def __init__(self, *, port: int, host: str, max_calls: int = 600) -> None:
        self._address = f"{host}:{port}"
        # gRPC's own limit answers without details; it is only the net below ours.
        self._server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=2 * max_calls)
        self._max_calls = max_calls
        self._reads = 0
        self._health = HealthServicer()
        self._names = [reflection.SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        self._mutations: set[asyncio.Task[Any]] = set()

    def add(self, service: ServiceDescriptor, implementation: object) -> None:
        """Registers every RPC of a service. Raises AttributeError if one is not implemented or not marked."""
        handlers = {}
        for method in service.methods:
            function = getattr(implementation, method.name)
            handlers[method.name] = grpc.unary_unary_rpc_method_handler(
                self._edge(method, function),  # reads the request itself, so that a broken one gets our answer
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
        self._names.append(service.full_name)

    async def start(self) -> None:
        """Opens the port. Raises OSError if it is taken."""
        add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(self._names, self._server)
        with socket.socket() as probe:  # gRPC itself would first write a line of its own about it
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            host, port = self._address.rsplit(":", 1)
            try:
                probe.bind((host, int(port)))
            except OSError as error:
                raise OSError(f"the address {self._address} is taken") from error
        self._server.add_insecure_port(self._address)
        await self._server.start()

    async def set_serving(self, serving: bool, *, has_database: bool = True) -> None:
        """Answers health checks with SERVING or NOT_SERVING; of the service "database" whether that answers."""
        for name in ("", *self._names):
            await self._health.set(name, _serving_status(serving and has_database))
        await self._health.set(DATABASE, _serving_status(has_database))

    async def stop(self, *, grace_seconds: float) -> None:
        """Takes no new calls, and ends those under way, commits that outlived their callers included."""
        await self._server.stop(grace_seconds)
        if self._mutations:
            await asyncio.wait(self._mutations, timeout=grace_seconds)

    def _edge(self, method: Any, function: Any) -> Callable[[Any, Any], Awaitable[Message]]:
        """Wraps an implementation: identity, required fields, deadline, errors."""
        roles: frozenset[str] = function.allowed_roles
        read = GetMessageClass(method.input_type).FromString
        required = _required_fields(method.input_type)
        reads_only = method.name.startswith(("Get", "List", "Search"))

        async def answer(request_bytes: bytes, caller: Caller) -> Message | status_pb2.Status:
            limit = asyncio.timeout(MAX_CALL_SECONDS)
            try:
                request = read(request_bytes)
                _refuse_missing(request, required)
                async with limit:
                    response: Message = await function(request, caller)
                    return response
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise  # the caller has hung up
                # Something in here was canceled: without an answer the caller would wait for his whole deadline.
                return status_of(
                    Unavailable("the call was interrupted; the outcome is unknown: fetch the resource before retrying")
                )
            except Exception as error:  # noqa: BLE001 - the edge: the caller gets a status and no internals
                return status_of(DeadlineExceeded() if limit.expired() else error)

        async def handle(request_bytes: bytes, context: Any) -> Message:
            metadata = dict(context.invocation_metadata())
            _enter(context.time_remaining(), metadata.get("traceparent"))
            try:
                caller = _identify(metadata, roles)
                if self._reads + len(self._mutations) >= self._max_calls:
                    raise Overloaded
            except (Unauthenticated, PermissionDenied, Overloaded) as error:
                result: Message | status_pb2.Status = status_of(error)
            else:
                result = await (self._read if reads_only else self._mutate)(answer(request_bytes, caller))
            if isinstance(result, status_pb2.Status):
                await _abort(context, result)
            return result

        return handle

    async def _read(self, answer: Coroutine[Any, Any, Any]) -> Any:
        self._reads += 1
        try:
            return await answer
        finally:
            self._reads -= 1

    async def _mutate(self, answer: Coroutine[Any, Any, Any]) -> Any:
        """Runs a mutation to its end even if the caller disconnects; it counts as a concurrent call until then."""
        task = asyncio.create_task(answer)
        self._mutations.add(task)
        task.add_done_callback(self._mutations.discard)
        return await asyncio.shield(task)


def _serving_status(serving: bool) -> Any:
    statuses = health_pb2.HealthCheckResponse
    return statuses.SERVING if serving else statuses.NOT_SERVING


def _enter(time_remaining: float | None, traceparent: object) -> None:
    seconds = MAX_CALL_SECONDS if time_remaining is None else min(time_remaining, MAX_CALL_SECONDS)
    _deadline.set(time.monotonic() + seconds)
    trace.enter(traceparent if isinstance(traceparent, str) else None)


def _identify(metadata: dict[str, Any], roles: frozenset[str]) -> Caller:
    if not roles:
        return ANONYMOUS
    subject = metadata.get(SUBJECT_HEADER)
    if not subject:
        raise Unauthenticated()
    role = metadata.get(ROLE_HEADER) or GUEST
    if role not in roles:
        raise PermissionDenied()
    return Caller(str(subject), str(role))


def _required_fields(request_type: Any) -> list[Any]:
    behavior = field_behavior_pb2.field_behavior
    return [f for f in request_type.fields if field_behavior_pb2.REQUIRED in f.GetOptions().Extensions[behavior]]


def _refuse_missing(request: Any, required: list[Any]) -> None:
    for field in required:
        if not (request.HasField(field.name) if field.has_presence else getattr(request, field.name)):
            raise Invalid(field.json_name, "is required")


async def _abort(context: Any, status: status_pb2.Status) -> None:
    # Only abort() puts the status where Envoy's breaker and retries see it; set_code() puts it into trailers.
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    await context.abort(code, status.message, details)


def status_of(error: Exception) -> status_pb2.Status:
    """The google.rpc.Status that tells a caller of an error."""
    match error:
        case DecodeError():
            return _status(code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", "malformed request message")
        case Invalid():
            violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.description)
            bad_request = error_details_pb2.BadRequest(field_violations=[violation])
            return _status(code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", str(error), bad_request)
        case NotFound():
            return _status(code_pb2.NOT_FOUND, error.reason(), str(error))
        case AlreadyExists():
            return _status(code_pb2.ALREADY_EXISTS, error.reason(), str(error))
        case Conflict():
            return _status(code_pb2.ABORTED, error.reason(), str(error))
        case WrongState():
            return _status(code_pb2.FAILED_PRECONDITION, error.reason(), str(error))
        case DomainError():
            return _status(code_pb2.FAILED_PRECONDITION, error.reason(), str(error))
        case Unauthenticated():
            return _status(code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED", "missing credentials")
        case PermissionDenied():
            return _status(
                code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED", "the caller's role does not permit this call"
            )
        case DeadlineExceeded():
            return _status(
                code_pb2.DEADLINE_EXCEEDED,
                "DEADLINE_EXCEEDED",
                "deadline exceeded; the outcome is unknown: fetch the resource before retrying",
            )
        case Overloaded():
            return _status(code_pb2.RESOURCE_EXHAUSTED, "TOO_BUSY", "too many concurrent calls", _retry_info(1.0))
        case Unavailable():
            return _unavailable(str(error), error.retry_after_seconds)
        case _ if isinstance(error, TRANSIENT):
            logger.warning("the database is away or overloaded: %r", error)
            return _unavailable("the database is unavailable", 1.0)
        case asyncpg.CharacterNotInRepertoireError() | asyncpg.UntranslatableCharacterError():
            return _status(
                code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", "a text contains a character that can't be stored"
            )
        case _:
            error_id = new_id()
            logger.error("internal error %s", error_id, exc_info=error)
            return _status(code_pb2.INTERNAL, "INTERNAL", f"internal error {error_id}")


def _unavailable(message: str, retry_after_seconds: float) -> status_pb2.Status:
    return _status(code_pb2.UNAVAILABLE, "UNAVAILABLE", message, _retry_info(retry_after_seconds))


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(int(seconds * 1000))
    return retry


def _status(code: int, reason: str, message: str, *details: Message) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain="gotohotel"), *details):
        status.details.add().Pack(detail)
    return status


# ---------------------------------------------------------------------------------------------- the client's edge


class RetryBudget:
    """Lets retries be a tenth of the calls at most, so that an outage is not answered with a storm of them."""

    def __init__(self) -> None:
        self._tokens = 5.0

    def earn(self) -> None:
        """Counts a first try."""
        self._tokens = min(self._tokens + 0.1, 5.0)

    def spend(self) -> bool:
        """Whether one more retry is affordable."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class CallFailed(Exception):
    """Another service gave no answer. If `never_sent`, it has not even seen the call; otherwise that is unknown."""

    def __init__(self, error: grpc.aio.AioRpcError, *, never_sent: bool) -> None:
        super().__init__(f"{error.code().name}: {error.details()}")
        self.code = error.code()
        self.never_sent = never_sent


class RpcClient:
    """Calls another service's idempotent RPCs, within the current call's deadline."""

    def __init__(self, target: str, *, name: str) -> None:
        self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._metadata = ((SUBJECT_HEADER, name), (ROLE_HEADER, SERVICE))
        self._budget = RetryBudget()
        self._methods: dict[str, Any] = {}

    async def call(
        self, path: str, request: Message, response_type: type[Response], *, timeout_seconds: float
    ) -> Response:
        """The response, after at most 3 tries of which only UNAVAILABLE ones are repeated.

        Raises CallFailed: unless it was never sent, ask for the truth or repeat the call.
        """
        ends = time.monotonic() + min(timeout_seconds, remaining_seconds())
        if path not in self._methods:
            self._methods[path] = self._channel.unary_unary(
                path,
                request_serializer=type(request).SerializeToString,
                response_deserializer=response_type.FromString,
            )
        method = self._methods[path]
        metadata = (*self._metadata, ("traceparent", trace.of("")))
        never_sent = True
        tries = 0
        self._budget.earn()

        def worth_another_try(error: BaseException) -> bool:
            nonlocal never_sent, tries
            tries += 1
            if not isinstance(error, grpc.aio.AioRpcError):
                return False
            never_sent = never_sent and _never_sent(error)
            again = error.code() == grpc.StatusCode.UNAVAILABLE and tries < MAX_ATTEMPTS and time.monotonic() < ends
            return again and self._budget.spend()

        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(MAX_ATTEMPTS),
                wait=wait_random_exponential(multiplier=0.01, max=0.1),
                retry=retry_if_exception(worth_another_try),
                reraise=True,
            ):
                with attempt:
                    left = max(ends - time.monotonic(), 0.001)
                    response: Response = await method(request, timeout=left, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(error, never_sent=never_sent) from None
        return response

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


@asynccontextmanager
async def open_client(target: str, *, name: str) -> AsyncIterator[RpcClient]:
    """Opens a channel; connecting happens with the first call."""
    client = RpcClient(target, name=name)
    try:
        yield client
    finally:
        await client.close()


def _never_sent(error: grpc.aio.AioRpcError) -> bool:
    """Whether the egress listener says that it found no host to send the call to."""
    return any(key == NEVER_SENT_HEADER for key, _ in error.trailing_metadata() or ())

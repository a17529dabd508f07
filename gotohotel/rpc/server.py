"""Serves RPCs: identity, required fields, deadline, concurrency limit, errors, health and reflection."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.api import field_behavior_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import status_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from gotohotel import language, trace
from gotohotel.domain import Invalid
from gotohotel.rpc import deadline, health
from gotohotel.rpc.access import SERVICE, allowed_roles, has_side_effects
from gotohotel.rpc.deadline import MAX_CALL_SECONDS
from gotohotel.rpc.health import Health
from gotohotel.rpc.identity import Caller, PermissionDenied, Unauthenticated, identify
from gotohotel.rpc.status import DeadlineExceeded, Overloaded, Unavailable, abort, status_of
from gotohotel.rpc.tls import peer_name, server_credentials

EXPIRY_HEADER = "x-gotohotel-expiry"  # when the caller's token expires, in seconds since 1970
IDEMPOTENCY_KEY_HEADER = "idempotency-key"
MESSAGE_LIMIT_BYTES = 1024 * 1024
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"

SERVER_OPTIONS = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_connection_age_ms", 300_000),  # without a limit of grace: a stream keeps its connection
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),
]


class RpcServer:
    """Serves implementations of services described by protobuf, with health and reflection."""

    def __init__(
        self,
        *,
        port: int,
        host: str,
        tls_folder: Path,
        health_port: int | None = None,
        max_calls: int = 600,
        max_calls_of_one: int = 64,
        max_streams: int = 2000,
        max_streams_of_one: int = 20,
    ) -> None:
        self._address = f"{host}:{port}"
        self._tls_folder = tls_folder
        # gRPC's own limit answers without details; it only backs up ours.
        self._server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=2 * (max_calls + max_streams))
        self._max_calls = max_calls
        self._max_calls_of_one = max_calls_of_one
        self._max_streams = max_streams
        self._max_streams_of_one = max_streams_of_one
        self._reads = 0
        self._calls_of: Counter[str] = Counter()  # concurrent calls, by the caller's subject
        self._health = Health()
        self._health_address = f"{host}:{health_port}" if health_port else ""
        self._names = [reflection.SERVICE_NAME, health.NAME]
        self._mutations: set[asyncio.Task[Any]] = set()
        self._streams: dict[object, asyncio.Timeout] = {}
        self._streams_of: Counter[str] = Counter()
        self._is_stopping = False

    def add(self, service: ServiceDescriptor, implementation: object) -> None:
        """Registers every RPC of a service.

        Raises AttributeError for one that is not implemented, LookupError if the proto does not declare who may call
        it.
        """
        handlers: dict[str, grpc.RpcMethodHandler[bytes, Message]] = {}
        for method in service.methods:
            function = getattr(implementation, method.name)
            # The edge parses the request itself, so that a malformed one gets our error.
            serialize = GetMessageClass(method.output_type).SerializeToString
            handlers[method.name] = (
                grpc.unary_stream_rpc_method_handler(self._stream_edge(method, function), response_serializer=serialize)
                if method.server_streaming
                else grpc.unary_unary_rpc_method_handler(self._edge(method, function), response_serializer=serialize)
            )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
        self._names.append(service.full_name)

    async def start(self) -> None:
        """Opens the port, for clients with a certificate, and the port for health checks, if there is to be one.

        Raises OSError if a port is in use, or if the server's own certificate is missing.
        """
        await self._health.add_to(self._server)
        self._add_reflection()
        health.refuse_taken(self._address)
        self._server.add_secure_port(self._address, server_credentials(self._tls_folder))
        if self._health_address:
            await self._health.open_port(self._health_address)
        await self._server.start()

    async def note_started(self) -> None:
        """Answers health checks that ask whether the start is complete with SERVING."""
        await self._health.note_started()

    def _add_reflection(self) -> None:
        """Reflection in both versions; their messages are the same, and grpcio-reflection knows the older name only."""
        self._names.append(REFLECTION_V1)
        servicer = reflection.aio.ReflectionServicer(self._names)
        add_ServerReflectionServicer_to_server(servicer, self._server)
        handler = grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        handlers = {"ServerReflectionInfo": handler}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(REFLECTION_V1, handlers),))

    async def set_serving(self, serving: bool, *, has_database: bool = True) -> None:
        """Sets the answer to health checks: SERVING or NOT_SERVING; for the service "database", whether the database
        answers.
        """
        await self._health.set_serving(self._names, serving, has_database=has_database)

    async def stop(self, *, grace_seconds: float) -> None:
        """Accepts no new calls, ends streams, and waits for running calls, including mutations whose callers have
        disconnected.
        """
        self._is_stopping = True
        for limit in self._streams.values():
            if not limit.expired():
                limit.reschedule(asyncio.get_running_loop().time())
        await self._server.stop(grace_seconds)
        if self._mutations:
            await asyncio.wait(self._mutations, timeout=grace_seconds)
        await self._health.close()

    def _edge(self, method: Any, function: Any) -> Callable[[Any, Any], Awaitable[Message]]:
        """Wraps an implementation: identity, required fields, deadline, errors."""
        roles = allowed_roles(method.GetOptions())
        read = GetMessageClass(method.input_type).FromString
        required = _required_fields(method.input_type)
        id_fields = [field.name for field in method.input_type.fields if field.name in ("order_id", "id")]
        has_request_id = "request_id" in method.input_type.fields_by_name
        run = self._mutate if has_side_effects(method.GetOptions()) else self._read

        async def answer(request_bytes: bytes, caller: Caller, key: str) -> Message | status_pb2.Status:
            limit = asyncio.timeout(MAX_CALL_SECONDS)
            self._calls_of[caller.subject] += 1
            try:
                request = read(request_bytes)
                trace.about(next((getattr(request, field) for field in id_fields), ""))
                if has_request_id and key:
                    _take_request_id(request, key)
                _refuse_missing(request, required)
                async with limit:
                    response: Message = await function(request, caller)
                    return response
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise  # the caller has disconnected
                # Something inside was canceled: without an answer the caller would wait for its whole deadline.
                return status_of(
                    Unavailable("the call was interrupted; the outcome is unknown: fetch the resource before retrying")
                )
            except Exception as error:  # noqa: BLE001 - the edge: the caller gets a status and no internals
                return status_of(DeadlineExceeded() if limit.expired() else error)
            finally:
                self._calls_of[caller.subject] -= 1
                if not self._calls_of[caller.subject]:
                    del self._calls_of[caller.subject]

        async def handle(request_bytes: bytes, context: Any) -> Message:
            metadata = dict(context.invocation_metadata())
            deadline.enter(context.time_remaining())
            trace.enter(metadata.get("traceparent"))
            language.enter(metadata.get("accept-language"))
            try:
                caller = identify(peer_name(context), metadata, roles)
                busy = self._reads + len(self._mutations) >= self._max_calls
                if busy or (caller.role != SERVICE and self._calls_of[caller.subject] >= self._max_calls_of_one):
                    raise Overloaded
            except (Unauthenticated, PermissionDenied, Overloaded) as error:
                result: Message | status_pb2.Status = status_of(error)
            else:
                result = await run(answer(request_bytes, caller, metadata.get(IDEMPOTENCY_KEY_HEADER, "")))
            if isinstance(result, status_pb2.Status):
                await abort(context, result)
            return result

        return handle

    def _stream_edge(self, method: Any, function: Any) -> Callable[[Any, Any], Awaitable[None]]:
        """Wraps an implementation that returns an asynchronous iterator.

        A stream has no deadline but the caller's own. It ends when the caller's token expires, or when this process
        stops: then with UNAVAILABLE, so that the caller connects to another one.
        """
        roles = allowed_roles(method.GetOptions())
        read = GetMessageClass(method.input_type).FromString
        required = _required_fields(method.input_type)

        async def send(request_bytes: bytes, context: Any, caller: Caller, limit: asyncio.Timeout) -> None:
            request = read(request_bytes)
            _refuse_missing(request, required)
            async with limit, aclosing(function(request, caller)) as messages:
                async for message in messages:
                    await context.write(message)

        async def handle(request_bytes: bytes, context: Any) -> None:
            metadata = dict(context.invocation_metadata())
            trace.enter(metadata.get("traceparent"))
            language.enter(metadata.get("accept-language"))
            limit, key = asyncio.timeout(_seconds_until(metadata.get(EXPIRY_HEADER))), object()
            subject = ""
            try:
                caller = identify(peer_name(context), metadata, roles)
                if self._is_stopping:
                    raise Unavailable("this instance stops; connect again")
                if (
                    len(self._streams) >= self._max_streams
                    or self._streams_of[caller.subject] >= self._max_streams_of_one
                ):
                    raise Overloaded
                subject = caller.subject
                self._streams[key] = limit
                self._streams_of[subject] += 1
                await send(request_bytes, context, caller, limit)
                return
            except asyncio.CancelledError:
                raise  # the caller has disconnected
            except Exception as error:  # noqa: BLE001 - the edge: the caller gets a status and no internals
                status = status_of(self._end_of_stream() if limit.expired() else error)
            finally:
                if self._streams.pop(key, None) is not None:
                    self._streams_of[subject] -= 1
                    if not self._streams_of[subject]:
                        del self._streams_of[subject]
            await abort(context, status)

        return handle

    def _end_of_stream(self) -> Exception:
        return Unavailable("this instance stops; connect again") if self._is_stopping else Unauthenticated()

    async def _read(self, answer: Coroutine[Any, Any, Any]) -> Any:
        self._reads += 1
        try:
            return await answer
        finally:
            self._reads -= 1

    async def _mutate(self, answer: Coroutine[Any, Any, Any]) -> Any:
        """Runs a mutation to its end even if the caller disconnects; until then it counts as a concurrent call."""
        task = asyncio.create_task(answer)
        self._mutations.add(task)
        task.add_done_callback(self._mutations.discard)
        return await asyncio.shield(task)


def _seconds_until(expiry: object) -> float | None:
    return float(str(expiry)) - time.time() if expiry else None


def _required_fields(request_type: Any) -> list[Any]:
    behavior = field_behavior_pb2.field_behavior
    return [f for f in request_type.fields if field_behavior_pb2.REQUIRED in f.GetOptions().Extensions[behavior]]


def _take_request_id(request: Any, key: str) -> None:
    """The header Idempotency-Key is another way to give the request id. Raises Invalid if both are given and differ."""
    if request.request_id not in ("", key):
        raise Invalid("requestId", "differs from the header Idempotency-Key")
    request.request_id = key


def _refuse_missing(request: Any, required: list[Any]) -> None:
    for field in required:
        if not (request.HasField(field.name) if field.has_presence else getattr(request, field.name)):
            raise Invalid(field.json_name, "is required")

"""Calls another service's RPCs, and waits no longer than the current call's deadline."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from gotohotel import trace
from gotohotel.rpc.deadline import remaining_seconds
from gotohotel.rpc.server import MESSAGE_LIMIT_BYTES
from gotohotel.rpc.tls import EGRESS, client_credentials

# The marker that Envoy's egress listener adds to its own errors when the call was never sent.
NEVER_SENT_HEADER = "x-gotohotel-never-sent"
MAX_ATTEMPTS = 3
UNDISTURBED_SECONDS = 3.0  # a call has as much, or its timeout, whatever its caller's deadline
SLOW_SECONDS = 0.5  # who says UNAVAILABLE after this long has waited for something, and would wait again

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
    ("grpc.ssl_target_name_override", EGRESS),
]

Response = TypeVar("Response", bound=Message)


class RetryBudget:
    """Limits retries to a tenth of the calls, so that an outage does not cause a storm of retries."""

    def __init__(self) -> None:
        self._tokens = 5.0

    def earn(self) -> None:
        """Counts a first attempt."""
        self._tokens = min(self._tokens + 0.1, 5.0)

    def spend(self) -> bool:
        """Whether one more retry is affordable."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class CallFailed(Exception):
    """Another service did not answer.

    With `never_sent` the call certainly did not reach it; otherwise that is unknown.
    """

    def __init__(self, error: grpc.aio.AioRpcError, *, never_sent: bool) -> None:
        super().__init__(f"{error.code().name}: {error.details()}")
        self.code = error.code()
        self.never_sent = never_sent
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        self._status = status_pb2.Status.FromString(details if isinstance(details, bytes) else b"")

    @property
    def reason(self) -> str:
        """The reason that the service gave (ErrorInfo), or ""."""
        info = error_details_pb2.ErrorInfo()
        return info.reason if any(detail.Unpack(info) for detail in self._status.details) else ""

    @property
    def retry_after_seconds(self) -> int | None:
        """The time to wait that the service gave (RetryInfo)."""
        retry = error_details_pb2.RetryInfo()
        return retry.retry_delay.seconds if any(detail.Unpack(retry) for detail in self._status.details) else None


class RpcClient:
    """Calls another service's idempotent RPCs through the gateway's egress listener.

    It waits no longer than the current call's deadline, but the other service has its time: broken off at the deadline
    of whoever calls this service, a call would count as a failure of the other one, which would be ejected.

    The listener tells the other service who calls: the name in the caller's certificate.
    """

    def __init__(self, target: str, *, tls_folder: Path) -> None:
        self._channel = grpc.aio.secure_channel(target, client_credentials(tls_folder), options=CHANNEL_OPTIONS)
        self._budget = RetryBudget()
        self._methods: dict[str, Any] = {}
        self._unattended: set[asyncio.Future[Any]] = set()

    async def call(
        self, path: str, request: Message, response_type: type[Response], *, timeout_seconds: float
    ) -> Response:
        """Returns the response, after at most 3 attempts; only UNAVAILABLE is retried, and only if it came quickly.

        Raises CallFailed. Unless it was never sent, fetch the resource or repeat the call.
        """
        now, remaining = time.monotonic(), remaining_seconds()
        ends = now + min(timeout_seconds, max(remaining, UNDISTURBED_SECONDS))
        waits_until = min(ends, now + remaining)
        if path not in self._methods:
            self._methods[path] = self._channel.unary_unary(
                path,
                request_serializer=type(request).SerializeToString,
                response_deserializer=response_type.FromString,
            )
        method = self._methods[path]
        metadata = (("traceparent", trace.of("")),)
        never_sent = True
        attempts = 0
        began = 0.0
        self._budget.earn()

        def worth_another_try(error: BaseException) -> bool:
            nonlocal never_sent, attempts
            attempts += 1
            if not isinstance(error, grpc.aio.AioRpcError):
                return False
            never_sent = never_sent and _never_sent(error)
            now = time.monotonic()
            again = error.code() == grpc.StatusCode.UNAVAILABLE and attempts < MAX_ATTEMPTS and now < waits_until
            return again and now - began < SLOW_SECONDS and self._budget.spend()

        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(MAX_ATTEMPTS),
                wait=wait_random_exponential(multiplier=0.01, max=0.1),
                retry=retry_if_exception(worth_another_try),
                reraise=True,
            ):
                with attempt:
                    began = time.monotonic()
                    call = method(request, timeout=max(ends - began, 0.001), metadata=metadata)
                    response: Response = await (call if waits_until == ends else self._wait(call, waits_until - began))
        except grpc.aio.AioRpcError as error:
            raise CallFailed(error, never_sent=never_sent) from None
        return response

    async def _wait(self, call: Any, seconds: float) -> Any:
        """The answer to a call that goes on if it takes longer."""
        answer = asyncio.ensure_future(call)
        self._unattended.add(answer)
        answer.add_done_callback(self._forget)
        await asyncio.wait((answer,), timeout=max(seconds, 0))
        if answer.done():
            return answer.result()
        nothing = grpc.aio.Metadata()
        raise grpc.aio.AioRpcError(grpc.StatusCode.DEADLINE_EXCEEDED, nothing, nothing, "the caller has no more time")

    def _forget(self, answer: asyncio.Future[Any]) -> None:
        self._unattended.discard(answer)
        if not answer.cancelled():
            answer.exception()  # nobody may be left who asks for it

    async def close(self) -> None:
        """Closes the channel, when the calls that nobody waits for have ended."""
        if self._unattended:
            await asyncio.wait(self._unattended, timeout=UNDISTURBED_SECONDS)
        await self._channel.close()


@asynccontextmanager
async def open_client(target: str, *, tls_folder: Path) -> AsyncIterator[RpcClient]:
    """Opens a channel; the first call connects."""
    client = RpcClient(target, tls_folder=tls_folder)
    try:
        yield client
    finally:
        await client.close()


def _never_sent(error: grpc.aio.AioRpcError) -> bool:
    """Whether the egress listener reports that it had no host to send the call to."""
    return any(key == NEVER_SENT_HEADER for key, _ in error.trailing_metadata() or ())

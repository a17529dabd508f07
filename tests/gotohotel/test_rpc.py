"""The gRPC server and client, over a real connection.

Long because each edge case of the server and the client has a test.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import MethodOptions
from google.rpc import code_pb2, error_details_pb2, status_pb2

from gotohotel.domain import Invalid
from gotohotel.order.v1 import order_service_pb2 as pb
from gotohotel.rpc import deadline
from gotohotel.rpc.access import SERVICE as SERVICE_ROLE
from gotohotel.rpc.access import allowed_roles, has_side_effects
from gotohotel.rpc.client import SLOW_SECONDS, CallFailed, RetryBudget, RpcClient, open_client
from gotohotel.rpc.identity import ROLE_HEADER, SUBJECT_HEADER, Caller, PermissionDenied, identify
from gotohotel.rpc.server import RpcServer
from gotohotel.rpc.status import Unavailable, status_of
from gotohotel.rpc.tls import AUTHORITY, CERTIFICATE, EGRESS, GATEWAY, KEY, client_credentials
from gotohotel.wire import parse_page
from ops import certificates, ports
from tests.gateways import named

SERVICE = pb.DESCRIPTOR.services_by_name["OrderService"]
CANCEL = "/gotohotel.order.v1.OrderService/CancelOrder"
Act = Callable[[Any, Caller], Awaitable[pb.Order]]


def implementation(act: Act) -> object:
    """An OrderService whose every RPC is `act`."""

    class Stub:
        async def _act(self, request: Any, caller: Caller) -> pb.Order:
            return await act(request, caller)

        SearchRooms = GetOrder = ListOrders = CreateOrder = PayOrder = CancelOrder = _act

    return Stub()


class Served(Protocol):
    """The fixture `served`."""

    def __call__(self, act: Act, **options: Any) -> AbstractAsyncContextManager[Any]: ...


@pytest.fixture
def served(tls: Path) -> Served:
    """Starts a server of that service; yields a channel to it, the gateway's if no other `peer` is given."""
    return partial(_served, tls)


@asynccontextmanager
async def _served(tls: Path, act: Act, *, peer: str = "gateway", **options: Any) -> AsyncIterator[Any]:
    async with (
        listening(tls, act, **options) as address,
        grpc.aio.secure_channel(address, client_credentials(tls / peer), options=named("order")) as channel,
    ):
        yield channel


@asynccontextmanager
async def listening(tls: Path, act: Act, **options: Any) -> AsyncIterator[str]:
    """Starts a server of that service; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = RpcServer(port=port, host="127.0.0.1", tls_folder=tls / "order", **options)
    server.add(SERVICE, implementation(act))
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(grace_seconds=5)


async def call(
    channel: Any, path: str = CANCEL, *, role: str | None = "guest", subject: str = "alice", **options: Any
) -> pb.Order:
    """Makes one call with an order id."""
    method = channel.unary_unary(
        path, request_serializer=pb.CancelOrderRequest.SerializeToString, response_deserializer=pb.Order.FromString
    )
    metadata = ((SUBJECT_HEADER, subject), (ROLE_HEADER, role)) if role else ()
    request = options.pop("request", pb.CancelOrderRequest(order_id="o"))
    order: pb.Order = await method(request, metadata=metadata, **options)
    return order


async def refusal(channel: Any, *arguments: Any, **options: Any) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """The code and the details with which a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call(channel, *arguments, **options)
    details = dict(error.value.trailing_metadata() or ())
    return error.value.code(), status_pb2.Status.FromString(details["grpc-status-details-bin"])


async def answer(_: Any, caller: Caller) -> pb.Order:
    """Returns an order with the caller's subject as its id."""
    return pb.Order(id=caller.subject)


async def test_the_caller_is_who_the_gateway_says(served: Served) -> None:
    """The subject and the role of the caller come from the metadata."""
    async with served(answer) as channel:
        assert (await call(channel)).id == "alice"


async def test_a_call_without_identity_is_unauthenticated(served: Served) -> None:
    """An RPC that is not public fails with UNAUTHENTICATED."""
    async with served(answer) as channel:
        code, _ = await refusal(channel, role=None)

    assert code == grpc.StatusCode.UNAUTHENTICATED


async def test_a_call_with_the_wrong_role_is_denied(served: Served) -> None:
    """The desk can't place orders: the proto allows CreateOrder for guests only."""
    async with served(answer) as channel:
        code, _ = await refusal(channel, "/gotohotel.order.v1.OrderService/CreateOrder", role="desk")

    assert code == grpc.StatusCode.PERMISSION_DENIED


def test_a_call_whose_proto_names_no_role_is_not_served() -> None:
    """If the option is forgotten, the RPC raises LookupError instead of being open to everybody."""
    with pytest.raises(LookupError, match="allow"):
        allowed_roles(MethodOptions())


def test_a_call_has_side_effects_unless_its_proto_says_otherwise() -> None:
    """An RPC without the option counts as one with side effects, which continues when its caller disconnects."""
    assert has_side_effects(MethodOptions())
    assert not has_side_effects(SERVICE.methods_by_name["GetOrder"].GetOptions())


@pytest.mark.parametrize("peer", ["egress", "pay"])
@pytest.mark.parametrize("role", ["guest", "desk", "service"])
async def test_only_the_gateway_names_guests(served: Served, peer: str, role: str) -> None:
    """Another peer is not believed, whatever role it claims, even if its certificate is valid."""
    async with served(answer, peer=peer) as channel:
        code, _ = await refusal(channel, role=role)

    expected = grpc.StatusCode.PERMISSION_DENIED if peer == "egress" else grpc.StatusCode.UNAUTHENTICATED
    assert code == expected


def test_the_gateway_cannot_claim_to_be_a_service() -> None:
    """Internal calls come from the egress listener only."""
    internal = frozenset({SERVICE_ROLE})

    with pytest.raises(PermissionDenied):
        identify(GATEWAY, {SUBJECT_HEADER: "order", ROLE_HEADER: SERVICE_ROLE}, internal)
    assert identify(EGRESS, {SUBJECT_HEADER: "order", ROLE_HEADER: SERVICE_ROLE}, internal).subject == "order"


@pytest.mark.parametrize("how", ["no TLS", "no certificate", "another authority"])
async def test_a_client_without_a_certificate_cannot_connect(tls: Path, tmp_path: Path, how: str) -> None:
    """The port itself refuses clients whose name is not proved, before any call."""
    certificates.make(tmp_path, ["gateway"])
    trusted = (tls / "order" / AUTHORITY).read_bytes()
    key, certificate = ((tmp_path / "gateway" / name).read_bytes() for name in (KEY, CERTIFICATE))
    credentials = {
        "no certificate": grpc.ssl_channel_credentials(trusted),
        "another authority": grpc.ssl_channel_credentials(trusted, key, certificate),
    }
    async with listening(tls, answer) as address:
        channel = (
            grpc.aio.insecure_channel(address)
            if how == "no TLS"
            else grpc.aio.secure_channel(address, credentials[how], options=named("order"))
        )
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(channel, timeout=3)
        await channel.close()

    assert error.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_an_empty_required_field_is_named(served: Served) -> None:
    """The error names the field, which the descriptor declares as required."""
    async with served(answer) as channel:
        code, status = await refusal(channel, request=pb.CancelOrderRequest())

    bad_request = error_details_pb2.BadRequest()
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert status.details[1].Unpack(bad_request)
    assert bad_request.field_violations[0].field == "orderId"


async def test_an_unexpected_error_does_not_leak(served: Served) -> None:
    """The text of the error is only logged; the caller gets a number to refer to."""

    async def fail(_: Any, __: Caller) -> pb.Order:
        raise RuntimeError("password=secret")

    async with served(fail) as channel:
        code, status = await refusal(channel)

    assert code == grpc.StatusCode.INTERNAL
    assert status.message.startswith("internal error ")
    assert b"secret" not in status.SerializeToString()


@pytest.mark.parametrize("path", [CANCEL, "/gotohotel.order.v1.OrderService/GetOrder"])
async def test_work_that_is_broken_off_is_answered(served: Served, path: str) -> None:
    """If the work is canceled, the caller gets UNAVAILABLE instead of waiting until its deadline."""

    async def break_off(_: Any, __: Caller) -> pb.Order:
        raise asyncio.CancelledError

    async with served(break_off) as channel:
        code, _ = await refusal(channel, path, role="desk", timeout=10)

    assert code == grpc.StatusCode.UNAVAILABLE


async def test_unavailable_says_when_to_try_again(served: Served) -> None:
    """The details of the error contain RetryInfo."""

    async def fail(_: Any, __: Caller) -> pb.Order:
        raise Unavailable("later", retry_after_seconds=3)

    async with served(fail) as channel:
        code, status = await refusal(channel)

    retry = error_details_pb2.RetryInfo()
    assert code == grpc.StatusCode.UNAVAILABLE
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.seconds == 3


async def test_too_many_calls_are_turned_away_with_the_time_to_wait(served: Served) -> None:
    """A call over the limit gets RESOURCE_EXHAUSTED. Work whose caller has disconnected counts too."""
    began, end = asyncio.Event(), asyncio.Event()

    async def work(_: Any, __: Caller) -> pb.Order:
        began.set()
        await end.wait()
        return pb.Order()

    async with served(work, max_calls=1) as channel:
        calling = asyncio.ensure_future(call(channel))
        await asyncio.wait_for(began.wait(), timeout=5)
        calling.cancel()

        code, status = await refusal(channel)
        end.set()

    retry = error_details_pb2.RetryInfo()
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.seconds == 1


async def test_one_caller_cannot_use_up_what_the_others_need(served: Served) -> None:
    """Each subject has a limit of concurrent calls; calls of other subjects are answered."""
    began, end = asyncio.Event(), asyncio.Event()

    async def work(_: Any, caller: Caller) -> pb.Order:
        if caller.subject == "alice":
            began.set()
            await end.wait()
        return pb.Order(id=caller.subject)

    async with served(work, max_calls_of_one=1) as channel:
        first = asyncio.ensure_future(call(channel))
        await asyncio.wait_for(began.wait(), timeout=5)

        code, status = await refusal(channel)
        other = await call(channel, subject="bob")
        end.set()
        await first
        again = await call(channel)

    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert status.details[0].type_url.endswith("ErrorInfo")
    assert (other.id, again.id) == ("bob", "alice")


async def test_work_goes_on_when_the_caller_hangs_up(served: Served) -> None:
    """The work of a call with side effects is completed after the caller disconnects."""
    began, done = asyncio.Event(), asyncio.Event()

    async def work(_: Any, __: Caller) -> pb.Order:
        began.set()
        await asyncio.sleep(0.2)
        done.set()
        return pb.Order()

    async with served(work) as channel:
        calling = asyncio.ensure_future(call(channel))
        await asyncio.wait_for(began.wait(), timeout=5)
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling

        await asyncio.wait_for(done.wait(), timeout=5)


async def test_the_callers_deadline_is_answered_even_if_the_work_goes_on(served: Served) -> None:
    """The caller gets DEADLINE_EXCEEDED; the outcome of the work is unknown to it."""

    async def work(_: Any, __: Caller) -> pb.Order:
        await asyncio.sleep(0.5)
        return pb.Order()

    async with served(work) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await call(channel, timeout=0.1)

    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_client_repeats_unavailable_calls_three_times_at_most(tls: Path) -> None:
    """Other errors are not retried. The failure says whether the server may have received the call."""
    attempts = 0

    async def fail(_: Any, __: Caller) -> pb.Order:
        nonlocal attempts
        attempts += 1
        raise Unavailable("no") if attempts < 10 else Invalid("x", "is bad")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = RpcServer(port=port, host="127.0.0.1", tls_folder=tls / "egress")
    server.add(SERVICE, implementation(fail))
    await server.start()
    async with open_client(f"127.0.0.1:{port}", tls_folder=tls / "egress") as client:
        with pytest.raises(CallFailed) as failure:
            await search(client)
        assert attempts == 3
        assert not failure.value.never_sent
        attempts = 100
        with pytest.raises(CallFailed):
            await search(client)
        assert attempts == 101
    await server.stop(grace_seconds=1)


async def test_a_client_does_not_repeat_what_has_waited_in_vain(tls: Path) -> None:
    """Whoever takes long to say UNAVAILABLE has waited for its database: it would again, and so would the caller."""
    attempts = 0

    async def wait_in_vain(_: Any, __: Caller) -> pb.Order:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(SLOW_SECONDS)
        raise Unavailable("no")

    [port] = ports.reserve(1)
    server = RpcServer(port=port, host="127.0.0.1", tls_folder=tls / "egress")
    server.add(SERVICE, implementation(wait_in_vain))
    await server.start()
    async with open_client(f"127.0.0.1:{port}", tls_folder=tls / "egress") as client:
        with pytest.raises(CallFailed, match="UNAVAILABLE"):
            await search(client)
    await server.stop(grace_seconds=1)

    assert attempts == 1


@asynccontextmanager
async def hurried(tls: Path, *, seconds: float = 0.2) -> AsyncIterator[tuple[CallFailed, asyncio.Event]]:
    """How a call fails whose caller has no time for it, and when its work is done. In the end the client is closed."""
    finished = asyncio.Event()

    async def work(_: Any, __: Caller) -> pb.Order:
        await asyncio.sleep(0.5)
        finished.set()
        return pb.Order()

    [port] = ports.reserve(1)
    server = RpcServer(port=port, host="127.0.0.1", tls_folder=tls / "egress")
    server.add(SERVICE, implementation(work))
    await server.start()
    async with open_client(f"127.0.0.1:{port}", tls_folder=tls / "egress") as client:
        deadline.enter(seconds)
        with pytest.raises(CallFailed) as failure:
            await search(client)
        yield failure.value, finished
    await server.stop(grace_seconds=1)


async def test_a_call_goes_on_when_the_callers_time_is_up(tls: Path) -> None:
    """The caller is answered in time, and the other service finishes its work."""
    async with hurried(tls) as (failure, finished):
        assert not finished.is_set()
        async with asyncio.timeout(2):
            await finished.wait()

    assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert not failure.never_sent


async def test_closing_a_client_waits_for_calls_that_nobody_waits_for(tls: Path) -> None:
    """A restart breaks off none of them."""
    async with hurried(tls) as (_, finished):
        assert not finished.is_set()

    assert finished.is_set()


async def test_a_deadline_that_is_over_may_be_that_of_a_wrong_clock() -> None:
    """A machine whose clock is ahead sees no time left for calls that have all of it: it does not give up."""
    deadline.enter(0.0)

    assert deadline.remaining_seconds() > deadline.MAX_CALL_SECONDS - 1


async def test_a_call_is_made_for_a_caller_without_time(tls: Path) -> None:
    """Otherwise a guest could have orders whose payment was never tried, and these count towards no limit."""
    async with hurried(tls, seconds=deadline.RESERVED_FOR_THE_ANSWER_SECONDS) as (failure, finished):
        async with asyncio.timeout(2):
            await finished.wait()

    assert not failure.never_sent


async def search(client: RpcClient) -> pb.SearchRoomsResponse:
    """Calls SearchRooms, which names no caller, as one service calls another."""
    path = "/gotohotel.order.v1.OrderService/SearchRooms"
    return await client.call(path, pb.SearchRoomsRequest(), pb.SearchRoomsResponse, timeout_seconds=2)


def test_reattempts_are_a_tenth_of_the_calls() -> None:
    """If a thousand calls fail in an outage, the budget allows a hundred retries, plus a few that were saved up."""
    budget = RetryBudget()
    reattempts = 0

    for _ in range(1000):
        budget.earn()
        reattempts += budget.spend()

    assert 100 <= reattempts <= 105


@pytest.mark.parametrize("token", ["x", "====", "bm90IGFuIGlk"])
def test_a_page_token_of_nowhere_is_refused(token: str) -> None:
    """Page tokens are opaque; an invalid one raises Invalid."""
    with pytest.raises(Invalid, match="pageToken"):
        parse_page(pb.ListOrdersRequest(page_token=token))


def test_a_page_has_at_most_200_things() -> None:
    """A larger size is reduced to 200; the default is 50."""
    assert parse_page(pb.ListOrdersRequest()).size == 50
    assert parse_page(pb.ListOrdersRequest(page_size=1000)).size == 200


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        TimeoutError(),
        asyncpg.ConnectionDoesNotExistError("closed in the middle of operation"),
        asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
        ConnectionRefusedError("PostgreSQL refuses the connection"),
        asyncpg.TooManyConnectionsError("no slots"),
        asyncpg.AdminShutdownError("terminating connection"),
        asyncpg.QueryCanceledError("statement timeout"),
    ],
    ids=repr,
)
def test_a_database_that_is_away_is_unavailable_and_no_internal_error(error: Exception) -> None:
    """Each of the driver's errors becomes UNAVAILABLE with RetryInfo, so that the caller may retry."""
    status = status_of(error)

    assert status.code == code_pb2.UNAVAILABLE
    assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)

"""The circuit breaker ejects single instances of pay_svc, not the service."""

import json
import random
import shutil
import socket
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format

from bench.names import Names
from gotohotel.order.v1.order_service_pb2 import CreateOrderRequest
from gotohotel.order.v1.order_service_pb2_grpc import OrderServiceStub
from gotohotel.pay.v1 import pay_service_pb2 as pb
from gotohotel.rpc.server import RpcServer
from gotohotel.rpc.status import Unavailable
from gotohotel.rpc.tls import client_credentials
from ops import audit
from ops.stack import Stack
from tests.conftest import Hotel, wait_for
from tests.gateways import Change, configure, further_process, grpc_channel, named, running_envoy, statistic

SERVICE = pb.DESCRIPTOR.services_by_name["PayService"]
CHECK = "/gotohotel.pay.v1.PayService/CheckAvailability"
HURRIED = 8
STATISTICS = ("ejections_enforced_total", "membership_healthy")


# Instances of a headless Service: one name, several addresses, one port.
NAME = "pay.test"
ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


def free_port() -> int:
    """A port that nobody uses now, at any of the addresses."""
    with socket.socket() as free:
        free.bind(("0.0.0.0", 0))  # noqa: S104 - only looked at
        return int(free.getsockname()[1])


@asynccontextmanager
async def bad_pay_svc(stack: Stack, host: str, port: int) -> AsyncIterator[None]:
    """An instance that answers every call with UNAVAILABLE."""

    async def fail(*_: Any) -> None:
        raise Unavailable("this instance is bad")

    server = RpcServer(port=port, host=host, tls_folder=stack.tls_folder("pay"))
    server.add(SERVICE, type("Bad", (), {method.name: staticmethod(fail) for method in SERVICE.methods})())
    await server.start()
    yield
    await server.stop(grace_seconds=1)


def egress_to(stack: Stack, folder: Path, *, port: int, names: Names) -> Stack:
    """The configuration of another gateway, whose egress listener finds the instances of pay_svc by a name."""
    free = Stack.on_free_ports(folder).ports
    twin = Stack(folder, {**stack.ports, "gateway": free["gateway"], "egress": free["egress"]})
    instance = f"{{endpoint: {{address: {{socket_address: {{address: {NAME}, port_value: {port}}}}}}}}}"
    resolver = json.dumps(names.envoy_resolver())
    found_by_name = Change(
        r"(cluster_name: pay_svc_egress\s+endpoints: )\[.*\]",
        rf"\g<1>[{{lb_endpoints: [{instance}]}}]\n      typed_dns_resolver_config: {resolver}",
    )
    configure(twin, stack, found_by_name)
    return twin


def statistics(gateway: Stack) -> dict[str, int]:
    """How often instances were ejected, and how many are not ejected now."""
    return {name: statistic(gateway, f"cluster.pay_svc_egress.*{name}") for name in STATISTICS}


async def test_of_three_instances_the_bad_one_alone_is_ejected(hotel: Hotel, tmp_path: Path) -> None:
    """After five failures in a row it gets no calls, while the two others answer all of them."""
    stack, port = hotel.stack, free_port()
    first, second, third = ADDRESSES
    with (
        further_process(stack, "pay_svc", first, port),
        further_process(stack, "pay_svc", second, port),
        Names() as names,
    ):
        names.set(NAME, list(ADDRESSES))
        async with bad_pay_svc(stack, third, port):
            gateway = egress_to(stack, tmp_path, port=port, names=names)
            with running_envoy(gateway):
                wait_for(lambda: statistics(gateway)["membership_healthy"] == 3)
                address = f"127.0.0.1:{gateway.ports['egress']}"
                credentials = client_credentials(stack.tls_folder("order"))
                async with grpc.aio.secure_channel(address, credentials, options=named("egress")) as channel:
                    until_ejected = await outcomes(channel, 100, until=lambda: bool(statistics(gateway)[STATISTICS[0]]))
                    afterwards = await outcomes(channel, 100)
                    seen = statistics(gateway)

    assert until_ejected[grpc.StatusCode.UNAVAILABLE] >= 5
    assert afterwards == {grpc.StatusCode.OK: 100}
    assert seen == {"ejections_enforced_total": 1, "membership_healthy": 2}


def test_guests_in_a_hurry_leave_payments_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The card processor takes up to 0.6 s, and some guests wait 0.12 to 0.16 s for their orders. Their payments go on:
    broken off, they would count as failures of pay_svc, and nobody could pay.
    """
    home = Path(tempfile.mkdtemp(prefix="gotohotel-"))
    stack = Stack.on_free_ports(home)
    monkeypatch.setenv("PAY_SANDBOX_DELAY_MS", "600")
    try:
        stack.up()
        hotel, stop = Hotel(stack), threading.Event()
        booking = hotel.booking(roomType=hotel.room_type(10_000))
        with ThreadPoolExecutor(HURRIED) as pool:
            hurried = [pool.submit(book_in_a_hurry, stack, booking, stop) for _ in range(HURRIED)]
            try:
                orders = [hotel.caller().post("/orders", booking) for _ in range(30)]
            finally:
                stop.set()
            outcomes_in_a_hurry = sum((each.result() for each in hurried), Counter[str]())
        ejections = statistics(stack)["ejections_enforced_total"]
        violated = {number: found for number, found in audit.check(stack, patience_seconds=30).items() if found}
        hotel.close()
    finally:
        stack.down()
        shutil.rmtree(home)

    assert outcomes_in_a_hurry.total() > 100
    assert outcomes_in_a_hurry["PAYMENT_IN_PROGRESS"] > 5
    assert set(outcomes_in_a_hurry) <= {"PAYMENT_IN_PROGRESS", "", "DEADLINE_EXCEEDED"}
    assert Counter(order["status"] for order in orders) == {"PAID": 30}
    assert ejections == 0
    assert violated == {}


def book_in_a_hurry(stack: Stack, booking: dict[str, Any], stop: threading.Event) -> Counter[str]:
    """Books again and again, with short deadlines; counts how the payments and the calls failed ("" for paid)."""
    seen: Counter[str] = Counter()
    request = json_format.ParseDict(booking, CreateOrderRequest())
    with grpc_channel(stack, "gateway") as channel:
        create = OrderServiceStub(channel).CreateOrder
        while not stop.is_set():
            token = stack.token(subject=str(uuid.uuid4()), role="guest")
            seconds = random.uniform(0.12, 0.16)
            try:
                order = create(request, metadata=(("authorization", f"Bearer {token}"),), timeout=seconds)
                seen[order.payment_error.reason] += 1
            except grpc.RpcError as error:
                seen[error.code().name] += 1
    return seen


async def outcomes(channel: grpc.aio.Channel, calls: int, *, until: Any = None) -> Counter[grpc.StatusCode]:
    """The codes of at most so many calls, one after the other."""
    call: Any = channel.unary_unary(
        CHECK,
        request_serializer=pb.CheckAvailabilityRequest.SerializeToString,
        response_deserializer=pb.CheckAvailabilityResponse.FromString,
    )
    codes: Counter[grpc.StatusCode] = Counter()
    for _ in range(calls):
        try:
            await call(pb.CheckAvailabilityRequest(), timeout=5)
            codes[grpc.StatusCode.OK] += 1
        except grpc.aio.AioRpcError as error:
            codes[error.code()] += 1
        if until and until():
            break
    return codes

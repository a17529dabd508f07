"""Calls reach a replica that lives, beside some that do not."""

import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
from google.protobuf import json_format

from gotohotel.order.v1.order_service_pb2 import CreateOrderRequest
from gotohotel.order.v1.order_service_pb2_grpc import OrderServiceStub
from ops import ports
from ops.stack import Stack
from tests.conftest import Client, Hotel, freeze, wait_for
from tests.gateways import Change, another_gateway, further_process, statistic

CALLS = 16
CLUSTERS = ("order_svc", "order_svc_anonymous")
SEARCHING = "cluster.order_svc_anonymous"


@contextmanager
def gateway_with(stack: Stack, folder: Path, *further: tuple[str, int]) -> Iterator[Stack]:
    """A gateway that knows further replicas of order_svc beside the stack's own."""
    endpoints = "".join(
        f"\n              - endpoint: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}"
        for host, port in further
    )
    known = r"(cluster_name: order_svc\w*\n.*\n +- lb_endpoints:)"
    with another_gateway(stack, folder, Change(known, rf"\g<1>{endpoints}", times=2)) as twin:
        yield twin


def test_a_replica_that_cannot_be_reached_costs_no_call(hotel: Hotel, tmp_path: Path) -> None:
    """One refuses connections, another takes them and never says a word, as a machine that is lost: every call is
    answered by the third one, bookings too.
    """
    [refusing] = ports.reserve(1)
    room_type, guest = hotel.room_type(CALLS), hotel.caller()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dead = [("127.0.0.1", refusing), ("127.0.0.1", int(silent.getsockname()[1]))]
        with (
            gateway_with(hotel.stack, tmp_path, *dead) as gateway,
            httpx.Client(base_url=gateway.gateway_url, timeout=20) as client,
        ):
            headers = {"Authorization": f"Bearer {guest.token}"}
            booking = hotel.booking(roomType=room_type)
            seen: Counter[int] = Counter()
            for _ in range(CALLS):
                seen[client.get("/rooms").status_code] += 1
                seen[client.post("/orders", json=booking, headers=headers).status_code] += 1
                seen[client.get("/healthz").status_code] += 1
            refused = statistic(gateway, f"{SEARCHING}.upstream_cx_connect_fail")
            timed_out = statistic(gateway, "cluster.order_svc.upstream_cx_connect_timeout")

    assert seen == {200: 3 * CALLS}
    assert refused > 0  # otherwise the dead ones were not tried
    assert timed_out > 0


def book(gateway: Stack, guest: Client, booking: dict[str, Any]) -> str:
    """Books over gRPC; returns what the gateway said, or "" if the order was placed."""
    request = json_format.ParseDict(booking, CreateOrderRequest())
    with grpc.insecure_channel(f"127.0.0.1:{gateway.ports['gateway']}") as channel:
        try:
            OrderServiceStub(channel).CreateOrder(request, metadata=(("authorization", f"Bearer {guest.token}"),))
        except grpc.RpcError as error:
            return str(error.details())
    return ""


def test_calls_that_a_dying_replica_has_not_answered_are_answered_by_another(hotel: Hotel, tmp_path: Path) -> None:
    """It hangs with calls in it, and is killed. Calls that only read are repeated; whoever books learns that the
    outcome is not known.
    """
    [port] = ports.reserve(1)
    room_type, guest = hotel.room_type(CALLS), hotel.caller()
    booking = hotel.booking(roomType=room_type)
    headers = {"Authorization": f"Bearer {guest.token}"}
    with (
        further_process(hotel.stack, "order_svc", "127.0.0.1", port) as dying,
        gateway_with(hotel.stack, tmp_path, ("127.0.0.1", port)) as gateway,
        httpx.Client(base_url=gateway.gateway_url, timeout=20) as client,
        ThreadPoolExecutor(2 * CALLS) as pool,
    ):
        while min(statistic(gateway, f"cluster.{name}.upstream_cx_active") for name in CLUSTERS) < 2:
            client.get("/rooms").raise_for_status()
            client.post("/orders", json=booking, headers=headers).raise_for_status()
        freeze(dying.pid)
        searches = [pool.submit(client.get, "/rooms") for _ in range(CALLS)]
        bookings = [pool.submit(client.post, "/orders", json=booking, headers=headers) for _ in range(4)]
        by_grpc = [pool.submit(book, gateway, guest, booking) for _ in range(2)]
        try:
            # The living one has answered, and the others wait: otherwise nothing is killed with calls in it.
            wait_for(lambda: sum(each.done() for each in searches) == CALLS // 2)
            wait_for(lambda: sum(each.done() for each in bookings) + sum(each.done() for each in by_grpc) == 3)
            waiting = statistic(gateway, f"{SEARCHING}.upstream_rq_active")
        finally:
            dying.kill()
        searched = Counter(each.result().status_code for each in searches)
        answers = [each.result().json() for each in bookings if each.result().status_code != httpx.codes.OK]
        told = [each["message"] for each in answers] + [text for each in by_grpc if (text := each.result())]

    assert waiting == CALLS // 2
    assert searched == {200: CALLS}
    assert len(told) == 3
    assert all("the outcome is unknown" in each for each in told), told

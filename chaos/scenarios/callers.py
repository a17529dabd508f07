"""Callers who give up, and callers who attack."""

import asyncio
import base64
import json
import re
import time
from typing import Any

import grpc.aio
import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from chaos.load import ERROR, GOOD, ROOMS, a_stay
from chaos.nemesis import NoHarmDone
from chaos.rig import Rig
from chaos.scenario import scenario
from gotohotel.order.v1 import order_service_pb2 as order_pb
from gotohotel.pay.v1 import pay_service_pb2 as pay_pb
from gotohotel.rpc.identity import ROLE_HEADER, SUBJECT_HEADER
from ops import tokens


@scenario(14, "a caller's deadline passes while the service commits: whole or absent, and GET tells which")
async def deadline(rig: Rig) -> None:
    """gRPC calls with a deadline of a few milliseconds; abandoned ones are repeated at the end."""
    guest = rig.caller("victim")
    stored_all_the_same = 0
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.stack.ports['gateway']}") as channel:
        create = _method(channel, "order", "OrderService", "CreateOrder", order_pb.Order)
        get = _method(channel, "order", "OrderService", "GetOrder", order_pb.Order)
        bearer = (("authorization", f"Bearer {guest.token}"),)
        requests = []
        for number in range(200):
            name = f"deadline {rig.seed} {number}"
            stay = a_stay(rig.chance)
            request = order_pb.CreateOrderRequest(
                *(), name=name, room_type=ROOMS, guest_cnt=1, request_id=name, card_no=GOOD,
                check_in=stay["checkIn"], check_out=stay["checkOut"],
            )  # fmt: skip
            requests.append(request)
            try:
                await create(request, metadata=bearer, timeout=rig.chance.uniform(0.002, 0.03))
            except grpc.aio.AioRpcError as error:
                rig.demand(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, f"{error.code()} {error.details()}")
                await asyncio.sleep(0.05)
                stored_all_the_same += await rig.sql("order_svc", "SELECT count(*) FROM orders WHERE name = $1", name)
            if stored_all_the_same >= 10:
                break
        if not stored_all_the_same:
            raise NoHarmDone("no deadline passed during a commit")
        rig.nemesis.note("deadline", f"{stored_all_the_same} passed during the commit")
        for request in requests:
            order = await create(request, metadata=bearer, timeout=20)
            found = await get(order_pb.GetOrderRequest(id=order.id), metadata=bearer, timeout=5)
            rig.demand(found.name == request.name, "GET tells of another order")
            count = await rig.sql("order_svc", "SELECT count(*) FROM orders WHERE name = $1", request.name)
            rig.demand(count == 1, f"{request.name} exists {count} times")


@scenario(16, "spoofed headers, broken headers, bad tokens, path tricks, internal calls: nobody else's data, no 5xx")
async def hostile(rig: Rig) -> None:
    """Honest callers run beside the attack and must not notice it."""
    victim, thief = rig.caller("victim"), rig.caller("thief")
    order_id = (await victim.book(**a_stay(rig.chance))).order_id
    good = {"Authorization": f"Bearer {thief.token}"}
    spoofed = {SUBJECT_HEADER: victim.subject, ROLE_HEADER: "desk", "x-envoy-original-path": "/orders"}
    headers: list[dict[str, str]] = [
        {},
        spoofed,
        {**good, **spoofed},
        *({**good, name: value} for name, value in BROKEN_HEADERS),
        *({"Authorization": f"Bearer {token}"} for token in _bad_tokens(rig, victim.subject)),
    ]
    paths = [
        ("GET", f"/orders/{order_id}"),
        ("GET", f"/rooms/%2e%2e/orders/{order_id}"),
        ("GET", f"/mypages/{order_id}?orderId={order_id}"),
        ("DELETE", f"/orders/{order_id}"),
        ("POST", f"/reservations/{order_id}:reject"),
        ("POST", "/gotohotel.pay.v1.PayService/CancelPayment"),
        ("POST", "/gotohotel.pay.v1.PayService/ProcessPayment"),
    ]
    async with httpx.AsyncClient(base_url=rig.stack.gateway_url, timeout=15) as client:
        for sent in headers:
            for method, path in paths:
                answer = await client.request(method, path, headers=sent, content="{}" if method == "POST" else None)
                said = f"{method} {path} with {sorted(sent)} was answered {answer.status_code}"
                rig.demand(400 <= answer.status_code < 500, said)
                rig.demand(victim.subject not in answer.text, said)
        rig.nemesis.note("hostile calls", f"{len(headers) * len(paths)}")
    for path in (f"/rooms/../orders/{order_id}", f"//orders/{order_id}", f"/rooms/..;/orders/{order_id}"):
        said = await _ask_as_written(rig, path, thief.token)
        rig.demand(re.match(r"HTTP/1.1 4\d\d ", said), f"{path} was answered {said[:12]}")
        rig.demand(victim.subject not in said, f"{path} was answered with the victim's name")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.stack.ports['gateway']}") as channel:
        for name, request in (
            ("CancelPayment", pay_pb.CancelPaymentRequest(order_id=order_id)),
            ("ProcessPayment", pay_pb.ProcessPaymentRequest(order_id=order_id, card_no=ERROR)),
            ("ClosePayment", pay_pb.ClosePaymentRequest(order_id=order_id)),
            ("CheckAvailability", pay_pb.CheckAvailabilityRequest()),
        ):
            call = _method(channel, "pay", "PayService", name, pay_pb.Payment)
            try:
                await call(request, metadata=(("authorization", f"Bearer {thief.token}"),), timeout=5)
            except grpc.aio.AioRpcError as error:
                allowed = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND)
                rig.demand(error.code() in allowed, f"{name} was answered {error.code()}")
            else:
                rig.demand(False, f"{name} was answered")
    rig.demand(await rig.order_status(order_id) == "PAID", "the victim's order has changed")
    rig.demand(not list(rig.load.errors()), "honest callers noticed")


async def _ask_as_written(rig: Rig, path: str, token: str) -> str:
    """The answer to a path that any HTTP library would normalise first."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.stack.ports["gateway"])
    lines = (f"GET {path} HTTP/1.1", "Host: hotel", f"Authorization: Bearer {token}", "Connection: close", "", "")
    writer.write("\r\n".join(lines).encode())
    said = await asyncio.wait_for(reader.read(), timeout=15)
    writer.close()
    return said.decode()


BROKEN_HEADERS = [
    ("grpc-timeout", "abc"),
    ("grpc-timeout", "99999999999S"),
    ("grpc-encoding", "foo"),
    ("x-foo-bin", "!!!"),
    ("grpc-trace-bin", "***"),
    ("traceparent", "00-zz"),
    ("x-forwarded-for", "127.0.0.1"),
    ("x-envoy-upstream-rq-timeout-ms", "1"),
    ("x-envoy-max-retries", "100"),
]


def _bad_tokens(rig: Rig, subject: str) -> list[str]:
    now = int(time.time())
    good = {"iss": tokens.ISSUER, "aud": tokens.AUDIENCE, "sub": subject, "role": "desk", "iat": now, "exp": now + 600}
    key = (rig.stack.home / "token-key.pem").read_text()

    def signed(changes: dict[str, Any], with_key: Any = key) -> str:
        claims = {name: value for name, value in {**good, **changes}.items() if value is not None}
        return jwt.encode(claims, with_key, "ES256", headers={"kid": tokens.key_id(rig.stack.home)})

    parts = [{"alg": "none", "kid": tokens.key_id(rig.stack.home)}, good]
    unsigned = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
    return [
        signed({"exp": now - 600}),
        signed({"exp": None}),
        signed({"aud": "another"}),
        signed({"iss": "another"}),
        signed({}, ec.generate_private_key(ec.SECP256R1())),
        f"{unsigned}.",
        "nonsense",
    ]


def _method(channel: Any, package: str, service: str, name: str, answer: Any) -> Any:
    return channel.unary_unary(
        f"/gotohotel.{package}.v1.{service}/{name}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=answer.FromString,
    )

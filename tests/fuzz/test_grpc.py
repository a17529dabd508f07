"""Mutated protobuf messages on the gRPC ports: the gateway's and the services' own."""

import random
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from gotohotel.mypage.v1 import mypage_service_pb2 as mypage_pb
from gotohotel.order.v1 import order_service_pb2 as order_pb
from gotohotel.pay.v1 import pay_service_pb2 as pay_pb
from gotohotel.reservation.v1 import reservation_service_pb2 as reservation_pb
from gotohotel.rpc.identity import ROLE_HEADER, SUBJECT_HEADER
from tests.conftest import Hotel
from tests.fuzz.conftest import CASES, HOSTILE_TEXTS, Truth, patiently
from tests.gateways import grpc_channel

SERVICES = {
    "order": order_pb.DESCRIPTOR.services_by_name["OrderService"],
    "pay": pay_pb.DESCRIPTOR.services_by_name["PayService"],
    "reservation": reservation_pb.DESCRIPTOR.services_by_name["ReservationService"],
    "mypage": mypage_pb.DESCRIPTOR.services_by_name["MyPageService"],
}
INTERNAL = ("ProcessPayment", "CancelPayment", "ClosePayment", "CheckAvailability")
# A stream does not end: hostile input to it is in tests/system/test_watch.py.
METHODS = [
    (part, method) for part, service in SERVICES.items() for method in service.methods if not method.server_streaming
]
SHARE = max(10, CASES // 4 // len(METHODS))
DOCUMENTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.mark.parametrize(("part", "method"), METHODS, ids=lambda value: getattr(value, "name", value))
def test_a_mutated_message_is_answered_as_documented(part: str, method: Any, hotel: Hotel, truth: Truth) -> None:
    """Only documented codes are returned, and a refused call changes nothing. The gateway serves no internal call."""
    chance = random.Random(f"{method.full_name}/{SHARE}")
    orders = truth.place_some()
    is_internal = method.name in INTERNAL
    allowed = {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.NOT_FOUND} if is_internal else DOCUMENTED
    # A service's own port trusts the gateway, which serves no internal call.
    ports = ["gateway"] if is_internal else ["gateway", part]
    for port in ports:
        with grpc_channel(hotel.stack, port) as channel:
            call: Any = channel.unary_unary(f"/{method.containing_service.full_name}/{method.name}")
            for _ in range(SHARE // len(ports)):
                sent = mutated(_message(method, orders, chance).SerializeToString(), chance)
                caller, role = chance.choice([(truth.guest, "guest"), (hotel.desk, "desk"), (truth.stranger, "guest")])
                identity = [(SUBJECT_HEADER, caller.subject), (ROLE_HEADER, role)]
                metadata = identity if port != "gateway" else [("authorization", f"Bearer {caller.token}")]
                code, answer = patiently(
                    lambda call=call, sent=sent, metadata=metadata: _outcome(call, sent, metadata),  # type: ignore[misc]
                    lambda outcome: (
                        outcome[0] == grpc.StatusCode.RESOURCE_EXHAUSTED and outcome[1] == "local_rate_limited"
                    ),
                )
                truth.answers[method.name, code.name] += 1
                assert code in allowed, f"{method.name} on {port} with {sent!r}: {code} {answer!r}"
                if code == grpc.StatusCode.OK:
                    read = method.output_type._concrete_class.FromString(answer)
                    truth.note(method.name, caller, MessageToDict(read, always_print_fields_with_no_presence=True))
    truth.check()


def _outcome(call: Any, sent: bytes, metadata: Any) -> tuple[grpc.StatusCode, Any]:
    try:
        return grpc.StatusCode.OK, call(sent, metadata=metadata, timeout=10)
    except grpc.RpcError as error:
        return error.code(), error.details()


def _message(method: Any, orders: list[str], chance: random.Random) -> Any:
    """A plausible request, often about an existing order; its texts may be hostile."""
    request = method.input_type._concrete_class()
    for field in method.input_type.fields:
        if field.type == field.TYPE_STRING and field.name in ("id", "order_id"):
            value = chance.choice(orders) if method.name != "UpsertRoomType" else f"Fuzz{chance.randrange(3)}"
            setattr(request, field.name, value)
        elif field.type == field.TYPE_STRING and chance.random() < 0.5:
            setattr(request, field.name, chance.choice([*HOSTILE_TEXTS, "Normal", "A", "4242424242424242"]))
        elif field.type == field.TYPE_INT32 and chance.random() < 0.7:
            setattr(request, field.name, chance.choice([0, 1, 2, -1, 2**31 - 1, -(2**31)]))
        elif field.message_type is not None and field.message_type.name == "Money":
            getattr(request, field.name).MergeFrom(
                field.message_type._concrete_class(
                    currency_code=chance.choice(["KRW", "", "USD", "\x00"]),
                    units=chance.choice([1000, -1, 2**63 - 1]),
                    nanos=chance.choice([0, 0, 5, -5, 10**9]),
                )
            )
    return request


def mutated(message: bytes, chance: random.Random) -> bytes:
    """The message with some of its bytes changed, removed, duplicated or added."""
    data = bytearray(message)
    for _ in range(chance.choice([0, 1, 1, 2, 5])):
        place = chance.randrange(len(data) + 1)
        match chance.randrange(6):
            case 0 if data:
                data[place % len(data)] ^= 1 << chance.randrange(8)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = chance.randbytes(chance.randrange(1, 9))
            case 3:
                data += data[place : place + 20]
            case 4:
                data += b"\xfa\x3f" + bytes([0xFF] * chance.randrange(1, 11))  # an unknown field of absurd length
            case _:
                data[place:place] = b"\x0a\x03\xff\xfe\xfd"  # a text that is not UTF-8
    return bytes(data)

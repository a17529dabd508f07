"""Who may call whom inside the hotel: certificates, and what order_svc has signed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.type.money_pb2 import Money

from gotohotel.ids import new_id
from gotohotel.order.v1.events_pb2 import Booking
from gotohotel.pay.v1.pay_service_pb2 import CancelPaymentRequest, Payment, ProcessPaymentRequest
from gotohotel.reservation.v1.reservation_service_pb2 import ConfirmReservationRequest, Reservation
from gotohotel.rpc.identity import ROLE_HEADER, SUBJECT_HEADER
from gotohotel.rpc.tls import client_credentials
from gotohotel.signatures import SigningKey
from ops import certificates
from ops.credentials import Credentials
from ops.errors import StackError
from ops.services import ORDER_SIGNING
from ops.stack import Stack
from pay_svc.sandbox import APPROVED
from tests.conftest import Client, Hotel
from tests.gateways import named
from tests.system.test_journey import CHARGES, query

CANCEL = "/gotohotel.pay.v1.PayService/CancelPayment"
PROCESS = "/gotohotel.pay.v1.PayService/ProcessPayment"


@contextmanager
def channel(stack: Stack, port: str, *, certificate_of: str | None) -> Iterator[grpc.Channel]:
    """A channel to a port of the stack, with a part's certificate."""
    address = f"127.0.0.1:{stack.ports[port]}"
    if certificate_of is None:
        with grpc.insecure_channel(address) as opened:
            yield opened
        return
    with grpc.secure_channel(address, client_credentials(stack.tls_folder(certificate_of)), named(port)) as opened:
        yield opened


def call(opened: grpc.Channel, path: str, request: Message, response_type: Any, *, role: str = "service") -> Any:
    """Makes one call that names its caller itself."""
    method = opened.unary_unary(
        path, request_serializer=type(request).SerializeToString, response_deserializer=response_type.FromString
    )
    return method(request, metadata=((SUBJECT_HEADER, "order_svc"), (ROLE_HEADER, role)), timeout=5)


@pytest.mark.parametrize("certificate_of", [None, "order", "reservation", "mypage", "gateway"])
def test_only_the_egress_listener_makes_internal_calls(hotel: Hotel, guest: Client, certificate_of: str | None) -> None:
    """Whoever reaches pay_svc's own port cancels no payment, whatever the call's headers say."""
    order = hotel.order(guest)

    with channel(hotel.stack, "pay", certificate_of=certificate_of) as opened, pytest.raises(grpc.RpcError) as error:
        call(opened, CANCEL, CancelPaymentRequest(order_id=order["id"]), Payment)

    assert error.value.code() in (
        grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED,
    )  # fmt: skip
    assert guest.get(f"/payments/{order['id']}")["status"] == "APPROVED"


@pytest.mark.parametrize("certificate_of", [None, "pay", "mypage", "gateway"])
def test_only_those_that_pay_use_the_egress_listener(hotel: Hotel, guest: Client, certificate_of: str | None) -> None:
    """order_svc and reservation_svc can connect, nobody else."""
    order = hotel.order(guest)

    with channel(hotel.stack, "egress", certificate_of=certificate_of) as opened, pytest.raises(grpc.RpcError) as error:
        call(opened, CANCEL, CancelPaymentRequest(order_id=order["id"]), Payment)

    assert error.value.code() == grpc.StatusCode.UNAVAILABLE
    assert guest.get(f"/payments/{order['id']}")["status"] == "APPROVED"


@pytest.mark.parametrize("certificate_of", ["order", "pay", "mypage", "egress"])
def test_a_service_is_not_the_desk(hotel: Hotel, guest: Client, certificate_of: str) -> None:
    """A service's certificate confirms no reservation: only the gateway names guests and the desk."""
    order = hotel.order(guest)
    hotel.reservation_with(order["id"], status="RECEIVED")
    request = ConfirmReservationRequest(order_id=order["id"])
    path = "/gotohotel.reservation.v1.ReservationService/ConfirmReservation"

    with (
        channel(hotel.stack, "reservation", certificate_of=certificate_of) as opened,
        pytest.raises(grpc.RpcError) as error,
    ):
        call(opened, path, request, Reservation, role="desk")

    assert error.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    assert hotel.desk.get(f"/reservations/{order['id']}")["status"] == "RECEIVED"


@pytest.mark.parametrize("wrong", ["nothing is signed", "cheaper", "another order", "another room", "own key"])
def test_only_what_order_svc_has_signed_is_charged(hotel: Hotel, guest: Client, wrong: str) -> None:
    """Not even a caller with a service's certificate makes an order paid for 1 KRW, or a charge without an order."""
    order = hotel.order(guest, card=None)
    signing = SigningKey(hotel.stack.credentials[ORDER_SIGNING])
    booking = Booking(name="Guest", room_type="Normal", guest_cnt=2, owner=guest.subject)
    amount = Money(currency_code="KRW", units=1)
    request = ProcessPaymentRequest(order_id=order["id"], attempt_id=new_id(), card_no=APPROVED, amount=amount)
    if wrong != "nothing is signed":
        key = SigningKey("x" * 32) if wrong == "own key" else signing
        signed_for = new_id() if wrong == "another order" else order["id"]
        key.sign(booking, signed_for, "KRW", 1000 if wrong == "cheaper" else 1, 0)
    if wrong == "another room":
        booking.room_type = "Prime"
    request.booking.CopyFrom(booking)

    with channel(hotel.stack, "egress", certificate_of="reservation") as opened, pytest.raises(grpc.RpcError) as error:
        call(opened, PROCESS, request, Payment)

    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert guest.get(f"/orders/{order['id']}")["status"] == "PAYMENT_PENDING"
    assert query(hotel, "sandbox", CHARGES, order["id"]) == 0


def read(folder: Path, part: str) -> bytes:
    """A part's certificate."""
    return (folder / part / "tls.crt").read_bytes()


def test_certificates_are_kept_until_they_expire_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new start makes those that are missing or due, and leaves the others as they are."""
    certificates.make(tmp_path, ["order", "pay"])
    first = read(tmp_path, "order")
    certificates.make(tmp_path, ["order", "pay", "gateway"])
    assert read(tmp_path, "order") == first

    monkeypatch.setattr(certificates, "RENEW_BEFORE", certificates.LIFETIME)
    certificates.make(tmp_path, ["order"])

    assert read(tmp_path, "order") != first
    assert (tmp_path / "order" / "tls.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage", ["no certificate", "empty certificate", "empty key", "another's", "another authority"]
)
def test_a_damaged_certificate_is_made_anew(tmp_path: Path, damage: str) -> None:
    """Whatever has happened to it, the next start repairs it, and touches no other."""
    certificates.make(tmp_path, ["order", "pay"])
    first, other, folder = read(tmp_path, "order"), read(tmp_path, "pay"), tmp_path / "order"
    if damage == "no certificate":
        (folder / "tls.crt").unlink()
    elif damage.startswith("empty"):
        (folder / ("tls.key" if "key" in damage else "tls.crt")).write_bytes(b"")
    elif damage == "another's":
        for name in ("tls.crt", "tls.key"):
            (folder / name).write_bytes((tmp_path / "pay" / name).read_bytes())
    else:
        certificates.make(tmp_path / "elsewhere", ["order"])
        for name in ("tls.crt", "tls.key", "ca.crt"):
            (folder / name).write_bytes((tmp_path / "elsewhere" / "order" / name).read_bytes())

    certificates.make(tmp_path, ["order", "pay"])

    assert read(tmp_path, "order") not in (first, other)
    assert read(tmp_path, "pay") == other
    client_credentials(folder)


def test_a_lost_signing_key_is_not_replaced(tmp_path: Path) -> None:
    """Payments on their way to the desk are signed with it. A home of the release before has none yet."""
    held = Credentials(tmp_path)
    held.mint()
    (tmp_path / "postgres").mkdir()
    made = json.loads((tmp_path / "secrets.json").read_text())
    del made[ORDER_SIGNING]
    (tmp_path / "secrets.json").write_text(json.dumps(made))

    Credentials(tmp_path).mint()
    assert ORDER_SIGNING in json.loads((tmp_path / "secrets.json").read_text())

    (tmp_path / "secrets.json").write_text(json.dumps(made))
    (tmp_path / "tls").mkdir()
    with pytest.raises(StackError, match=ORDER_SIGNING):
        Credentials(tmp_path).mint()

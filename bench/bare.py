"""Stand-ins for order_svc and pay_svc, which only pass on the calls of an order: `python -m bench.bare order_svc`.

Certificates, identity and deadlines are as always. Nothing is stored, signed or announced, and request and answer hold
less.
"""

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

from gotohotel.app import calm_the_garbage_collector
from gotohotel.domain import WrongState
from gotohotel.ids import new_id
from gotohotel.order.v1 import order_service_pb2 as order_pb
from gotohotel.pay.v1 import pay_service_pb2 as pay_pb
from gotohotel.rpc.client import RpcClient, open_client
from gotohotel.rpc.identity import Caller
from gotohotel.rpc.server import RpcServer
from gotohotel.settings import Address, Settings, read_settings
from order_svc.clients import PROCESS_PAYMENT


class OrderSettings(Settings):
    """Those of order_svc that are needed here."""

    pay_target: Address


class NotHere(WrongState):
    """The stand-in has no such call. The gateway counts this as no failure, so it ejects nobody."""


class _Bare:
    """Every RPC that is not written here is refused."""

    def __getattr__(self, name: str) -> Callable[[Any, Caller], Awaitable[Any]]:
        async def refuse(_: object, __: Caller) -> None:
            raise NotHere(f"{name} does not exist here")

        return refuse


class BareOrders(_Bare):
    """Every order is new and paid."""

    def __init__(self, payments: RpcClient) -> None:
        self._payments = payments

    async def CreateOrder(self, request: order_pb.CreateOrderRequest, _: Caller) -> order_pb.Order:
        payment = pay_pb.ProcessPaymentRequest(order_id=new_id(), attempt_id=new_id(), card_no=request.card_no)
        payment.amount.currency_code, payment.amount.units = "KRW", 1
        payment.booking.name = request.name
        paid = await self._payments.call(PROCESS_PAYMENT, payment, pay_pb.Payment, timeout_seconds=3)
        return order_pb.Order(id=paid.order_id, room_type=request.room_type, status=order_pb.Order.PAID)


class BarePayments(_Bare):
    """Every card is charged."""

    async def ProcessPayment(self, request: pay_pb.ProcessPaymentRequest, _: Caller) -> pay_pb.Payment:
        return pay_pb.Payment(id=new_id(), order_id=request.order_id, status=pay_pb.Payment.APPROVED)


async def _serve(settings: Settings, name: str, implementation: _Bare) -> None:
    server = RpcServer(port=settings.port, host=settings.host, tls_folder=settings.tls_folder)
    module = {"order_svc": order_pb, "pay_svc": pay_pb}[name]
    [service] = module.DESCRIPTOR.services_by_name.values()
    server.add(service, implementation)
    await server.start()
    await server.set_serving(True)
    calm_the_garbage_collector()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    await server.stop(grace_seconds=1)


async def _main(name: str) -> None:
    if name == "pay_svc":
        await _serve(read_settings(Settings, "PAY"), name, BarePayments())
        return
    settings = read_settings(OrderSettings, "ORDER")
    async with open_client(settings.pay_target, tls_folder=settings.tls_folder) as payments:
        await _serve(settings, name, BareOrders(payments))


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))

"""The rules of selling rooms. Pure.

booking  stays and room types
payment  the known state of an order's payment
order    the order and its events
ports    interfaces that the use cases need
errors   refusals
"""

from order_svc.domain.booking import MAX_DAYS_AHEAD, MAX_NIGHTS, Booking, RoomType, Stay, UnpaidLimits, Vacancy
from order_svc.domain.errors import (
    OrderChanged,
    OrderNotCancelable,
    OrderNotFound,
    OrderNotPayable,
    PaymentsUnreachable,
    RequestTaken,
    RoomTypeNotFound,
    SoldOut,
    StayBegun,
    TooManyAttempts,
    TooManyUnpaid,
)
from order_svc.domain.order import FACTS, Facts, Order, OrderCanceled, Ordered, OrderExpired, Status, status_from
from order_svc.domain.payment import (
    DECLINES,
    IN_PROGRESS,
    PAY_LATER,
    TOO_MANY_ATTEMPTS,
    PaymentClosure,
    PaymentError,
    PaymentOutcome,
    declined,
    too_many_attempts,
)
from order_svc.domain.ports import Orders, Payments, Request, RoomTypes

__all__ = [
    "DECLINES",
    "FACTS",
    "IN_PROGRESS",
    "MAX_DAYS_AHEAD",
    "MAX_NIGHTS",
    "PAY_LATER",
    "TOO_MANY_ATTEMPTS",
    "Booking",
    "Facts",
    "Order",
    "OrderCanceled",
    "OrderChanged",
    "OrderExpired",
    "OrderNotCancelable",
    "OrderNotFound",
    "OrderNotPayable",
    "Ordered",
    "Orders",
    "PaymentClosure",
    "PaymentError",
    "PaymentOutcome",
    "Payments",
    "PaymentsUnreachable",
    "Request",
    "RequestTaken",
    "RoomType",
    "RoomTypeNotFound",
    "RoomTypes",
    "SoldOut",
    "Status",
    "Stay",
    "StayBegun",
    "TooManyAttempts",
    "TooManyUnpaid",
    "UnpaidLimits",
    "Vacancy",
    "declined",
    "status_from",
    "too_many_attempts",
]

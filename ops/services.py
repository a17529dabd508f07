"""The services of this release. Ports, databases, users, secrets, settings and the audit follow from this table."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """One service, and what the stack provides for it."""

    port: int  # unless GOTOHOTEL_<PART>_PORT says otherwise
    publishes: bool = False  # publishes events: gotohotel.<part>.v1
    listens: bool = False  # has policies
    calls_pay: bool = False  # calls pay_svc through the gateway's egress listener
    has_fingerprint_key: bool = False  # stores keyed hashes: of request bodies, or of card numbers
    has_card_processor: bool = False  # gets the password of the sandbox processor's ledger
    signs_orders: bool = False  # gets the key that signs what may be charged
    sends_messages: bool = False  # tells guests of changes
    buckets: tuple[str, ...] = ()  # key-value buckets of NATS that it may use
    checks_orders: bool = False  # gets the public half of that key


SERVICES: dict[str, Service] = {
    "order_svc": Service(
        port=8081, publishes=True, listens=True, calls_pay=True, has_fingerprint_key=True, signs_orders=True
    ),
    "pay_svc": Service(
        port=8083, publishes=True, has_fingerprint_key=True, has_card_processor=True, checks_orders=True
    ),
    "reservation_svc": Service(
        port=8082, publishes=True, listens=True, calls_pay=True, has_fingerprint_key=True, checks_orders=True
    ),
    "mypage_svc": Service(port=8084, listens=True, sends_messages=True, buckets=("mypages_a", "mypages_b")),
}
PUBLISHERS = tuple(name for name, service in SERVICES.items() if service.publishes)
LISTENERS = tuple(name for name, service in SERVICES.items() if service.listens)

MYPAGE = "mypage_svc"
OPERATOR = "operator"  # the NATS user of this command line, without restrictions
# The sandbox processor's own ledger: another database and another role than pay_svc's.
SANDBOX = "sandbox"
# The secret of order_svc's signatures. Payments that the desk has not received yet are signed with it.
ORDER_SIGNING = "order_signing"


def part(name: str) -> str:
    """A service's name in packages, events and ports: order_svc → order."""
    return name.removesuffix("_svc")


def owner(name: str) -> str:
    """The role that owns a service's schema; the service's own role changes only rows."""
    return f"{name}_owner"


def nats_password(user: str) -> str:
    """The name of a NATS user's password in secrets.json."""
    return f"{user}_nats"


def fingerprint_key(name: str) -> str:
    """The name of a service's hash key in secrets.json."""
    return f"{name}_fingerprint"


def secrets_of(name: str) -> list[str]:
    """The names of a service's secrets."""
    keys = [fingerprint_key(name)] if SERVICES[name].has_fingerprint_key else []
    return [name, owner(name), nats_password(name), *keys]


def secrets_needed() -> list[str]:
    """The names of all secrets of a stack."""
    return [
        "postgres",
        SANDBOX,
        ORDER_SIGNING,
        nats_password(OPERATOR),
        *(secret for name in SERVICES for secret in secrets_of(name)),
    ]

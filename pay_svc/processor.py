"""The card processors that PAY_PROCESSOR can select. Each adapter has its own settings and migrations."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from pay_svc.domain import Processor
from pay_svc.sandbox import open_sandbox

PROCESSORS: dict[str, Callable[[], AbstractAsyncContextManager[Processor]]] = {
    "sandbox": open_sandbox,
}

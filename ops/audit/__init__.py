"""Checks the invariants: `gotohotel audit`.

invariants  what must hold
snapshot    the data that they are checked on
window      which orders are looked at
reading     how it is read
"""

import asyncio
import time

from ops.addresses import Addresses
from ops.audit.invariants import INVARIANTS
from ops.audit.reading import read_snapshot
from ops.audit.snapshot import AuditSnapshot, StreamEvent
from ops.audit.window import EVERYTHING, Window

# Work in progress is no violation: the audit looks again for this long before it reports one.
PATIENCE_SECONDS = 15

Found = dict[str, list[str]]


def check(stack: Addresses, *, patience_seconds: float | None = None, window: Window = EVERYTHING) -> Found:
    """The violations of each invariant, after waiting for work in progress."""
    return check_snapshot(stack, patience_seconds=patience_seconds, window=window)[1]


def check_snapshot(
    stack: Addresses, *, patience_seconds: float | None = None, window: Window = EVERYTHING
) -> tuple[AuditSnapshot, Found]:
    """The violations and the snapshot.

    What is found once but not the next time was in progress, and is no violation.
    """
    snapshot, seen = _look(stack, window)
    patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
    ends = time.monotonic() + patience  # counted from here: reading a large hotel may take longer than this itself
    found = seen
    while any(found.values()) and time.monotonic() < ends:
        time.sleep(0.5)
        before = seen
        snapshot, seen = _look(stack, window)
        found = {number: [what for what in seen[number] if what in before[number]] for number in seen}
    return snapshot, found


def _look(stack: Addresses, window: Window) -> tuple[AuditSnapshot, Found]:
    snapshot = asyncio.run(read_snapshot(stack, window))
    return snapshot, {number: sorted(check(snapshot)) for number, (_, check) in INVARIANTS.items()}


def report(stack: Addresses, window: Window = EVERYTHING) -> bool:
    """Prints a line per invariant; returns True if all hold."""
    snapshot, found = check_snapshot(stack, window=window)
    if not window.is_everything:
        print(f"{len(snapshot.orders)} orders were placed in this window.")  # none: then everything holds
    for number, violations in found.items():
        print(f"{number:<4} {'VIOLATED' if violations else 'holds':<9} {INVARIANTS[number][0]}")
        for violation in violations[:10]:
            print(f"     - {violation}")
        if len(violations) > 10:
            print(f"     - and {len(violations) - 10} more")
    return not any(found.values())


__all__ = [
    "INVARIANTS",
    "PATIENCE_SECONDS",
    "AuditSnapshot",
    "StreamEvent",
    "Window",
    "check",
    "check_snapshot",
    "report",
]

"""The invariants, checked: `gotohotel audit`.

invariants  what must hold
snapshot    what they speak of
reading     how it is read
"""

import asyncio
import time

from ops.audit.invariants import INVARIANTS
from ops.audit.reading import read_snapshot
from ops.audit.snapshot import AuditSnapshot, StreamEvent
from ops.stack import Stack

# What is on its way when the audit begins is not wrong: it looks again for so long before it reports.
PATIENCE_SECONDS = 15

Found = dict[str, list[str]]


def check(stack: Stack, *, patience_seconds: float | None = None) -> Found:
    """The violations of each invariant, after waiting for what is on its way."""
    return check_snapshot(stack, patience_seconds=patience_seconds)[1]


def check_snapshot(stack: Stack, *, patience_seconds: float | None = None) -> tuple[AuditSnapshot, Found]:
    """The books too. What is found at one look and no longer at the next was on its way, and is not wrong."""
    snapshot, seen = _look(stack)
    patience = PATIENCE_SECONDS if patience_seconds is None else patience_seconds
    ends = time.monotonic() + patience  # from here on: a look at a large hotel may take longer than that itself
    found = seen
    while any(found.values()) and time.monotonic() < ends:
        time.sleep(0.5)
        before = seen
        snapshot, seen = _look(stack)
        found = {number: [what for what in seen[number] if what in before[number]] for number in seen}
    return snapshot, found


def _look(stack: Stack) -> tuple[AuditSnapshot, Found]:
    snapshot = asyncio.run(read_snapshot(stack))
    return snapshot, {number: sorted(check(snapshot)) for number, (_, check) in INVARIANTS.items()}


def report(stack: Stack) -> bool:
    """Prints a line for each invariant; True if all hold."""
    found = check(stack)
    for number, violations in found.items():
        print(f"{number:<4} {'VIOLATED' if violations else 'holds':<9} {INVARIANTS[number][0]}")
        for violation in violations[:10]:
            print(f"     - {violation}")
        if len(violations) > 10:
            print(f"     - and {len(violations) - 10} more")
    return not any(found.values())


__all__ = ["INVARIANTS", "PATIENCE_SECONDS", "AuditSnapshot", "StreamEvent", "check", "check_snapshot", "report"]

"""Becomes another program, under Linux's normal scheduling policy: woken, it may interrupt the other processes."""

import os
import sys
from contextlib import suppress

if __name__ == "__main__":
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with suppress(OSError):  # then the policy of the supervisor stays
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606 - the arguments are a command of ours

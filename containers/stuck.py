"""Stops the main thread of a process, in which the event loop runs, and no other."""

import ctypes
import os
import threading
from pathlib import Path

PTRACE_SEIZE, PTRACE_INTERRUPT = 0x4206, 0x4207
WALL = 0x40000000
STOPPED = "t"  # by a tracer


def stop_event_loop(pid: int) -> None:
    """Stops it until somebody kills the process: a traced thread obeys SIGKILL only."""
    threading.Thread(target=_trace, args=(pid,), daemon=True).start()


def only_event_loop_is_stopped(pid: int) -> bool:
    """Whether the main thread is stopped, and there are other threads, and all of them can run."""
    states = {int(thread.name): _state(thread) for thread in Path(f"/proc/{pid}/task").iterdir()}
    return states.pop(pid, "") == STOPPED and bool(states) and STOPPED not in states.values()


def _trace(pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(), ctypes.c_void_p()):
            raise OSError(ctypes.get_errno(), f"ptrace of process {pid}")
    # Its parent learns that it has ended only when this thread has.
    while os.WIFSTOPPED(os.waitpid(pid, WALL)[1]):
        pass


def _state(thread: Path) -> str:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]

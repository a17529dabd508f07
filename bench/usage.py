"""CPU time and memory of the stack's processes, with their children."""

import os
from collections.abc import Mapping

import psutil


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU seconds so far, by process; the load generator's own as "bench"."""
    used = {}
    for name, pid in (*pids.items(), ("bench", os.getpid())):
        times = [member.cpu_times() for member in (_family(pid) if name != "bench" else [psutil.Process(pid)])]
        used[name] = sum(t.user + t.system + t.children_user + t.children_system for t in times)
    return used


def memory_bytes(pids: Mapping[str, int]) -> dict[str, int]:
    """Proportional set size now, by process: shared pages count once."""
    return {name: sum(member.memory_full_info().pss for member in _family(pid)) for name, pid in pids.items()}

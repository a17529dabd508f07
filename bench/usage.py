"""CPU time and memory of the stack's processes, with their children."""

import os
from collections.abc import Mapping

import psutil


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU seconds so far, by process; the load generator's own as "bench"."""
    used = {name: sum(_cpu(member) for member in family(pid)) for name, pid in pids.items()}
    return {**used, "bench": _cpu(psutil.Process(os.getpid()))}


def memory_bytes(pids: Mapping[str, int]) -> dict[str, int]:
    """Proportional set size now, by process: shared pages count once."""
    return {name: sum(_memory(member) for member in family(pid)) for name, pid in pids.items()}


def _cpu(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0  # a PostgreSQL worker that has ended; its parent's children_user includes it
    return float(times.user + times.system + times.children_user + times.children_system)


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0

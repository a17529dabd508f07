"""Further replicas of each service, beside the stack's own: on the same connections, and restarted when they end."""

import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ops.configuration import PROCESSES
from ops.ports import accepts
from ops.services import SERVICES
from ops.stack import START_SECONDS, Stack
from ops.supervision import STOP_SECONDS, interrupt_nobody, wait_until

LOOK_SECONDS = 0.5


@dataclass
class Process:
    """One further process of a service."""

    name: str
    port: int
    running: "subprocess.Popen[bytes] | None" = None  # None: stopped, and not restarted


@dataclass
class Replicas:
    """The further processes; `ports` has those of each service, by its part's name."""

    stack: Stack
    ports: Mapping[str, Sequence[int]]
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _closing: threading.Event = field(default_factory=threading.Event, init=False)

    def __post_init__(self) -> None:
        self._processes = [Process(name, port) for name in SERVICES for port in self.ports[PROCESSES[name]]]
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def open(self) -> None:
        """Starts all; returns when they can be connected to. Raises StackError if one can't."""
        self._watching.start()
        for name in SERVICES:
            self.start(name)
        for name in SERVICES:
            otherwise = f"a further {name} does not start"
            wait_until(partial(self.all_accept, name), otherwise, seconds=START_SECONDS)

    def close(self) -> None:
        """Ends all."""
        self._closing.set()
        self._watching.join()
        for name in SERVICES:
            self.stop(name)

    def start(self, name: str) -> None:
        """Starts those of a service."""
        with self._lock:
            for process in self._of(name):
                self._start(process)

    def stop(self, name: str) -> None:
        """Tells those of a service to end, and waits for it."""
        with self._lock:
            ending = [process.running for process in self._of(name) if process.running]
            for process in self._of(name):
                process.running = None
            for running in ending:
                running.terminate()
            for running in ending:
                try:
                    running.wait(timeout=STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    running.kill()  # as the supervisor does it
                    running.wait()

    def pids(self, name: str) -> list[int]:
        """Of the processes of a service; none for another part."""
        with self._lock:
            running = [process.running for process in self._of(name) if process.running]
            return [each.pid for each in running if each.poll() is None]

    def all_accept(self, name: str) -> bool:
        """Whether all processes of a service can be connected to."""
        return all(accepts(process.port) for process in self._of(name))

    def _of(self, name: str) -> list[Process]:
        return [process for process in self._processes if process.name == name]

    def _start(self, process: Process) -> None:
        port = {f"{PROCESSES[process.name].upper()}_PORT": str(process.port)}
        environment = {**os.environ, **self.stack.service_environment(process.name), **port}
        with (self.stack.home / "log" / f"{process.name}.{process.port}.log").open("a") as log:
            command = [sys.executable, "-m", process.name]
            process.running = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        interrupt_nobody(process.running.pid)  # as in the embedded stack

    def _watch(self) -> None:
        """Starts again what has ended by itself, as the supervisor does."""
        while not self._closing.wait(LOOK_SECONDS):
            with self._lock:
                for process in self._processes:
                    if process.running and process.running.poll() is not None:
                        self._start(process)

"""supervisord: starts, stops and restarts the processes of a stack."""

import os
import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from supervisor.xmlrpc import Faults, SupervisorTransport

from ops.errors import StackError

STOP_SECONDS = 60  # how long a process may take to end
STOPPED = ("STOPPED", "EXITED", "FATAL")

SUPERVISOR_CONF = """\
[supervisord]
directory = {home}
logfile = {home}/log/supervisord.log
logfile_maxbytes = 5MB
pidfile = {home}/supervisord.pid
loglevel = info
{identity}
[unix_http_server]
file = {home}/supervisor.sock
chmod = 0700
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
"""

PROGRAM_CONF = """
[program:{name}]
command = {command}
environment = {environment}
priority = {priority}
autostart = false
autorestart = true
startsecs = 1
startretries = 1000000
stopsignal = {stopsignal}
stopwaitsecs = {stop_seconds}
redirect_stderr = {is_one_log}
stdout_logfile = {home}/log/{output}.log
stdout_logfile_maxbytes = 20MB
stdout_logfile_backups = 2
stderr_logfile = {errors}
stderr_logfile_maxbytes = 20MB
stderr_logfile_backups = 2
{user}
"""


@dataclass(frozen=True, slots=True)
class Program:
    """A process to supervise."""

    command: str
    environment: Mapping[str, str] = field(default_factory=dict)
    stopsignal: str = "TERM"
    user: str = ""  # "": the user who runs the supervisor
    output: str = ""  # the log of its standard output; "": the same as that of its standard error


def interrupt_nobody(pid: int) -> None:
    """Sets the policy of a process and of all that it starts: woken, they do not interrupt what runs (decision 28)."""
    if hasattr(os, "SCHED_BATCH"):  # Linux
        with suppress(OSError):  # forbidden here: then it is only slower
            os.sched_setscheduler(pid, os.SCHED_BATCH, os.sched_param(0))


class Supervisor:
    """The supervisor of a stack's folder."""

    def __init__(self, home: Path) -> None:
        self._home = home

    @property
    def is_up(self) -> bool:
        """Whether it runs. Raises StackError if it runs but does not answer."""
        try:
            self.call("getState")
        except (OSError, xmlrpc.client.Error):
            pid_file = self._home / "supervisord.pid"
            pid = int(pid_file.read_text() or 0) if pid_file.exists() else 0
            if pid and psutil.pid_exists(pid) and _is_supervisor(psutil.Process(pid), self._conf):
                raise StackError(f"supervisord runs, but does not answer at its socket; end it: kill {pid}") from None
            return False
        return True

    def orphans(self) -> list[psutil.Process]:
        """Processes that still run although their supervisor was killed, in start order."""
        found = [process for process in psutil.process_iter(["create_time"]) if self._is_ours(process)]
        return sorted(found, key=lambda process: process.info["create_time"] or 0)

    def end_orphans(self) -> None:
        """Ends them one after the other, the last started first; kills what does not end in time."""
        for process in psutil.process_iter():
            if _is_supervisor(process, self._conf):  # it runs, but its socket and pid file were removed
                _end(process, signal.SIGKILL)
        for orphan in reversed(self.orphans()):
            is_postgres = _environment(orphan).get("SUPERVISOR_PROCESS_NAME") == "postgres"
            _end(orphan, signal.SIGINT if is_postgres else signal.SIGTERM)

    @property
    def _conf(self) -> str:
        return str(self._home / "supervisor.conf")

    def _is_ours(self, process: psutil.Process) -> bool:
        """Whether this supervisor has started the process itself: it tells its children where it listens."""
        ours = f"unix://{self._home}/supervisor.sock"
        if _environment(process).get("SUPERVISOR_SERVER_URL") != ours:
            return False
        with suppress(psutil.Error):
            parent = process.parent()
            return parent is None or _environment(parent).get("SUPERVISOR_SERVER_URL") != ours
        return False

    def run(self) -> None:
        """Starts it, without any process yet."""
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._home / "supervisor.conf")]
        # supervisor still imports pkg_resources, which warns; a user can't change that.
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
        if done.returncode != 0:
            raise StackError(f"supervisord does not start: {done.stderr.strip()}")
        wait_until(lambda: self.is_up, "supervisord does not answer", seconds=10)
        interrupt_nobody(self.call("getPID"))

    def shut_down(self) -> None:
        """Ends it; returns when it is gone."""
        pid = self.call("getPID")
        self.call("shutdown")
        wait_until(lambda: _has_ended(pid), "supervisord does not end", seconds=30)
        (self._home / "supervisor.sock").unlink(missing_ok=True)

    def configure(self, programs: Mapping[str, "Program"]) -> None:
        """Writes its configuration: processes by name, in start order."""
        identity = "user = root\n" if os.geteuid() == 0 else ""
        conf = self._home / "supervisor.conf"
        conf.touch(mode=0o600)
        conf.write_text(
            SUPERVISOR_CONF.format(home=self._home, identity=identity)
            + "".join(
                PROGRAM_CONF.format(
                    name=name,
                    command=program.command,
                    environment=",".join(f'{key}="{value}"' for key, value in program.environment.items()),
                    priority=priority,
                    stopsignal=program.stopsignal,
                    stop_seconds=STOP_SECONDS,
                    home=self._home,
                    user=f"user = {program.user}" if program.user else "",
                    is_one_log=str(not program.output).lower(),
                    output=program.output or name,
                    errors=f"{self._home}/log/{name}.log" if program.output else "NONE",
                )
                for priority, (name, program) in enumerate(programs.items())
            )
        )

    def processes(self) -> dict[str, Any]:
        """The state of each process, by name."""
        return {info["name"]: info for info in self.call("getAllProcessInfo")}

    def start(self, name: str) -> None:
        """Starts a process without waiting for it."""
        self._tell("startProcess", name, done_already=Faults.ALREADY_STARTED)

    def stop(self, *names: str) -> None:
        """Stops processes, all at once, and waits for those that are being stopped already."""
        for name in names:
            self._tell("stopProcess", name, done_already=Faults.NOT_RUNNING)
        otherwise = f"{', '.join(names)} did not stop"
        wait_until(lambda: all(self._state(name) in STOPPED for name in names), otherwise, seconds=STOP_SECONDS + 10)

    def _tell(self, command: str, name: str, *, done_already: int) -> None:
        """Does not wait for the process. That another command was faster (the fault `done_already`) is no error."""
        try:
            self.call(command, name, False)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode != done_already:
                raise

    def _state(self, name: str) -> str:
        return str(self.call("getProcessInfo", name)["statename"])

    def is_started(self, name: str) -> bool:
        """Whether a process is running or being started."""
        return self._state(name) in ("RUNNING", "STARTING", "BACKOFF")

    def has_ended(self, name: str) -> bool:
        """Whether a process ended by itself soon after its start; the supervisor starts it again and again."""
        return self._state(name) == "BACKOFF"

    def call(self, name: str, *arguments: Any) -> Any:
        """Calls its XML-RPC interface. Raises OSError if it does not run."""
        transport = SupervisorTransport(None, None, f"unix://{self._home}/supervisor.sock")
        try:
            server: Any = xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport)
            return getattr(server.supervisor, name)(*arguments)
        finally:
            transport.close()


def wait_until(condition: Callable[[], bool], otherwise: str, *, seconds: float) -> None:
    """Returns when a condition holds. Raises StackError with this message after a timeout."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise StackError(otherwise)
        time.sleep(0.1)


def _environment(process: psutil.Process) -> dict[str, str]:
    """A process's environment; nothing if it can't be looked at."""
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _end(process: psutil.Process, wanted: signal.Signals) -> None:
    """Ends a process with this signal; kills it if it does not end in time."""
    with suppress(psutil.Error):
        process.send_signal(wanted)
        try:
            wait_until(lambda: _has_ended(process.pid), "it does not end", seconds=STOP_SECONDS)
        except StackError:
            process.kill()


def _has_ended(pid: int) -> bool:
    """Whether a process has ended. A zombie has: its parent has not reaped it, as process 1 of a container may not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.Error:  # it is gone, or its number belongs to another user's process by now
        return True


def _is_supervisor(process: psutil.Process, conf: str) -> bool:
    """Whether the process is the supervisord of this configuration; a number in a file may be another's by now."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return conf in command and any("supervisord" in part for part in command)

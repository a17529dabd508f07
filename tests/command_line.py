"""Runs `gotohotel`: in the process of the tests, which has everything imported already, or in one of its own."""

import gc
import io
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from ops.__main__ import main
from ops.stack import Stack

ONE_AT_A_TIME = threading.Lock()  # environment and output are the process's


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def gotohotel(stack: Stack, *arguments: str, **settings: str) -> Done:
    """Runs a command on a stack."""
    return run(arguments, {**_environment(stack), **settings})


def run(arguments: Sequence[str], settings: Mapping[str, str]) -> Done:
    """Runs a command with these settings beside those of the process. A second one waits for its end."""
    stdout, stderr = io.StringIO(), io.StringIO()
    status = 0
    with ONE_AT_A_TIME, patch.dict(os.environ, settings), redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            main(arguments)
        except SystemExit as ended:  # as the interpreter reads it
            status = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
            if isinstance(ended.code, str):
                print(ended.code, file=sys.stderr)
    if status:
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            gc.collect()  # a process that fails would close what it left open
    return Done(status, stdout.getvalue(), stderr.getvalue())


def separately(stack: Stack, *arguments: str) -> Done:
    """Runs a command in a process of its own, beside others."""
    command = [sys.executable, "-m", "ops", *arguments]
    environment = {**os.environ, **_environment(stack)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def _environment(stack: Stack) -> dict[str, str]:
    ports = {f"GOTOHOTEL_{name.upper()}_PORT": str(port) for name, port in stack.ports.items()}
    return {"GOTOHOTEL_HOME": str(stack.home), **ports}

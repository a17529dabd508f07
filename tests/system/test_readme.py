"""Every command of the README runs, on a stack of its own."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.stack import Stack
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Not started: the README's commands do that."""
    home = Path(tempfile.mkdtemp(prefix="gotohotel-"))
    stack = Stack.on_free_ports(home)
    yield stack
    stack.down()
    shutil.rmtree(home)


def bash(stack: Stack, script: str, **environment: str) -> str:
    """Runs a script as a reader would, but against this stack; it must succeed."""
    ports = {f"GOTOHOTEL_{name.upper()}_PORT": str(port) for name, port in stack.ports.items()}
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "ARGS")}
    told = {**outside, "GOTOHOTEL_HOME": str(stack.home), **ports, **environment}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("8088", str(stack.ports["gateway"]))],
        cwd=ROOT,
        env=told,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_readmes_commands_are_these() -> None:
    """A block that is added here has to be run below."""
    assert [block.split()[:2] for block in SHELL] == [
        ["make", "demo"],
        ["make", "up"],
        ['GUEST="Authorization:', "Bearer"],
        ["make", "bench"],
        ["make", "chaos"],
    ]
    assert SHELL[0].split() == ["make", "demo", "make", "test"]
    assert len(PYTHON) == 1


def test_make_demo(stack: Stack) -> None:
    """It starts its own stack and takes it down again. (`make test` is what runs here.)"""
    told = bash(stack, "make demo")

    assert told.count("holds") == 10
    assert "SOLD_OUT" in told
    assert not stack.is_up


def test_the_commands_that_run_it(stack: Stack) -> None:
    """up, status, stop, start, audit; the demo on a running stack leaves it running; down."""
    told = bash(stack, SHELL[1] + "\nmake demo\nmake -s status")

    assert "reservation_svc has stopped." in told
    assert told.count("RUNNING") == 21
    assert stack.is_up


def test_the_calls_with_curl(stack: Stack) -> None:
    """The last one cancels what the first booked."""
    told = bash(stack, SHELL[2])

    assert '"status":"PAID"' in told
    assert '"status":"CONFIRMED"' in told
    assert '"status":"CANCELING"' in told


def test_the_grpc_client(stack: Stack) -> None:
    """Printed in full in the README."""
    script = PYTHON[0].replace("8088", str(stack.ports["gateway"]))
    told = bash(stack, f"TOKEN=$(make -s token) .venv/bin/python - <<'END'\n{script}\nEND")

    assert "Prime 240000" in told
    assert told.strip().endswith("PAID")


def test_make_bench(stack: Stack) -> None:
    """Short here; it runs on a stack of its own beside this one."""
    told = bash(stack, SHELL[3], ARGS="--seconds 2")

    assert re.search(r"^ratio +\d", told, re.MULTILINE)
    assert "were not paid" not in told


def test_make_chaos(stack: Stack) -> None:
    """On a stack of its own beside this one, which has no dead letters."""
    told = bash(stack, SHELL[4])

    assert re.findall(r"^(\d+) [\w-]+ .* holds$", told, re.MULTILINE) == ["8", "3"]
    assert "0 dead letters" in told


def test_make_alone_lists_the_targets(stack: Stack) -> None:
    """Each with a sentence."""
    told = bash(stack, "make")

    for target in (
        "demo",
        "test",
        "up",
        "down",
        "status",
        "logs",
        "start",
        "stop",
        "token",
        "audit",
        "bench",
        "chaos",
        "fuzz",
    ):
        assert re.search(rf"make {target} +\w", told)

"""Every command of the README runs, on a separate stack."""

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
    """A stack that is not started: the README's commands start it."""
    home = Path(tempfile.mkdtemp(prefix="gotohotel-"))
    stack = Stack.on_free_ports(home)
    yield stack
    stack.down()
    shutil.rmtree(home)


@pytest.fixture
def running(stack: Stack) -> Stack:
    """The same stack, started; each test runs alone too."""
    if not stack.is_up:
        bash(stack, "make up")
    return stack


def bash(stack: Stack, script: str, **environment: str) -> str:
    """Runs a script as a reader would, but on this stack; it must succeed."""
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
    """The README has exactly these blocks, so that a new block needs a test below."""
    assert [block.split()[:2] for block in SHELL] == [
        ["make", "demo"],
        ["make", "up"],
        ['GUEST="Authorization:', "Bearer"],
        ["make", "bench"],
        ["make", "siege"],
        ["make", "chaos"],
    ]
    assert SHELL[0].split() == ["make", "demo", "make", "test"]
    assert len(PYTHON) == 1


def test_make_demo(stack: Stack) -> None:
    """The demo starts its own stack and stops it again. `make test` is this test run itself."""
    told = bash(stack, "make demo")

    assert told.count("holds") == 12
    sent = re.findall(r"KakaoTalk to \*\*\*\*5678: \[고투호텔\] ([^.]+)\.", told)
    assert sent == [
        "예약이 접수되었습니다", "결제가 완료되었습니다", "예약이 확정되었습니다", "취소 요청이 접수되었습니다",
        "예약이 취소되었습니다",
    ]  # fmt: skip
    # A watch sends the newest page: a state that lasts for some milliseconds may not be seen.
    assert re.search(r"watched: PAID → CONFIRMED → (CANCELING → )?CANCELED$", told, re.MULTILINE)
    assert "SOLD_OUT" in told
    assert not stack.is_up


def test_the_commands_that_run_it(stack: Stack) -> None:
    """up, status, stop, start and audit succeed."""
    told = bash(stack, SHELL[1] + "\nmake -s status")

    assert "reservation_svc has stopped." in told
    assert told.count("RUNNING") == 21
    assert stack.is_up


def test_the_calls_with_curl(running: Stack) -> None:
    """The calls book, pay, confirm and cancel one order."""
    told = bash(running, SHELL[2])

    assert '"status":"PAID"' in told
    assert '"status":"CONFIRMED"' in told
    assert '"status":"CANCELING"' in told


def test_the_grpc_client(running: Stack) -> None:
    """The client that is printed in the README books and pays a room."""
    script = PYTHON[0].replace("8088", str(running.ports["gateway"]))
    told = bash(running, f"TOKEN=$(make -s token) .venv/bin/python - <<'END'\n{script}\nEND")

    assert "Prime 240000" in told
    assert told.strip().endswith("PAID")


def test_make_bench(stack: Stack) -> None:
    """The benchmark runs on a separate stack beside this one, for a short time, and prints the ratio."""
    told = bash(stack, SHELL[3], ARGS="--seconds 1 --clients 8")

    assert re.search(r"^ratio +\d", told, re.MULTILINE)
    assert "were not paid" not in told
    for rpc in ("SearchRooms", "GetMyPage", "ListMyPages"):
        assert re.search(rf"^{rpc} +\d", told, re.MULTILINE)


def test_make_siege(stack: Stack, tmp_path: Path) -> None:
    """With few guests, for a short time: nobody is turned away, every order is paid in the end, and the audit holds."""
    told = bash(stack, SHELL[4], ARGS=f"--seconds 3 --users 20 --plot {tmp_path}/siege.svg")

    assert re.search(r"^availability +100\.00 %", told, re.MULTILINE), told
    assert re.search(r"^the audit +holds", told, re.MULTILINE)
    assert int(re.findall(r"^to be paid later +(\d+)", told, re.MULTILINE)[0]) > 0  # payments were slow
    assert (tmp_path / "siege.svg").read_text().startswith("<svg")


def test_make_chaos(running: Stack) -> None:
    """The scenarios hold on a separate stack beside this one, and this one has no dead letters."""
    told = bash(running, SHELL[5])

    assert re.findall(r"^(\d+) [\w-]+ .* holds$", told, re.MULTILINE) == ["3"]
    assert "0 dead letters" in told


def test_make_keeps_what_python_compiles(stack: Stack, tmp_path: Path) -> None:
    """Also if the environment forbids it, as in many containers: otherwise each process compiles every module."""
    bash(stack, "make test ARGS=--version", PYTHONDONTWRITEBYTECODE="1", PYTHONPYCACHEPREFIX=str(tmp_path))

    assert list(tmp_path.rglob("*.pyc"))


def test_make_alone_lists_the_targets(stack: Stack) -> None:
    """`make` prints each target with a description."""
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
        "siege",
        "chaos",
        "fuzz",
    ):
        assert re.search(rf"make {target} +\w", told)

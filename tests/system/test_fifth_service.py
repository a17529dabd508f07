"""A fifth service, added as docs/how-to.md describes, starts on the data of an existing hotel."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ops.stack import Stack
from tests.conftest import ROOT, Client, wait_for

FIFTH = ROOT / "tests" / "fifth_service"
COPIED = ("gotohotel", "order_svc", "pay_svc", "reservation_svc", "mypage_svc", "ops", "envoy", "protos")
TABLE_ENDS = (
    '    "mypage_svc": Service(port=8084, listens=True, sends_messages=True, buckets=("mypages_a", "mypages_b")),\n'
)
NEW_ROW = '    "review_svc": Service(port=8090, publishes=True, listens=True),\n'


@pytest.fixture
def release() -> Iterator[Path]:
    """A copy of the program with the new service: its folder, its protos, one row in ops/services.py."""
    folder = Path(tempfile.mkdtemp(prefix="gotohotel-fifth-"))
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc.*"))  # being written
    shutil.copytree(FIFTH / "protos", folder / "protos", dirs_exist_ok=True)
    shutil.copytree(FIFTH / "review_svc", folder / "review_svc")
    services = (folder / "ops" / "services.py").read_text()
    assert services.count(TABLE_ENDS) == 1
    (folder / "ops" / "services.py").write_text(services.replace(TABLE_ENDS, TABLE_ENDS + NEW_ROW))
    shutil.copy(ROOT / "hatch_build.py", folder)
    subprocess.run([sys.executable, "hatch_build.py"], cwd=folder, check=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder with a short path, because it contains a socket."""
    folder = Path(tempfile.mkdtemp(prefix="gotohotel-"))
    yield folder
    shutil.rmtree(folder)


def command(release: Path, stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the new release's command line on that stack."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ports = {f"GOTOHOTEL_{name.upper()}_PORT": str(number) for name, number in stack.ports.items()}
    environment = {
        **os.environ, **ports, "GOTOHOTEL_HOME": str(stack.home), "GOTOHOTEL_REVIEW_PORT": str(port),
        "PYTHONPATH": str(release),
    }  # fmt: skip
    program = [sys.executable, "-m", "ops", *arguments]
    return subprocess.run(
        program, cwd=release, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_fifth_service_starts_on_an_existing_home(home: Path, release: Path) -> None:
    """Its row in ops/services.py is enough for database, NATS, routes and audit, and it receives old events."""
    stack = Stack.on_free_ports(home)
    stack.up()
    guest, desk = Client(stack, subject="alice", role="guest"), Client(stack, subject="desk", role="desk")
    mallory = Client(stack, subject="mallory", role="guest")
    try:
        order = guest.post("/orders", {"name": "Alice", "roomType": "Prime", "cardNo": "4242424242424242"})["id"]
        wait_for(lambda: desk.request("GET", f"/reservations/{order}").is_success)
        desk.post(f"/reservations/{order}:confirm")
        assert guest.request("GET", f"/reviews/{order}").status_code == 404
        stack.down()

        started = command(release, stack, "up")

        assert started.returncode == 0, started.stderr
        assert "review_svc" in started.stdout
        wait_for(lambda: guest.request("GET", f"/reviews/{order}").is_success)  # confirmed before the service existed
        review = guest.post(f"/reviews/{order}", {"text": "Quiet."})
        assert review == {"orderId": order, "text": "Quiet."}
        again = guest.request("POST", f"/reviews/{order}", json={"text": "Loud."})
        assert again.json()["details"][0]["reason"] == "STAY_REVIEWED_ALREADY"
        assert mallory.request("GET", f"/reviews/{order}").status_code == 404
        assert guest.request("GET", f"/orders/{order}").json()["status"] == "CONFIRMED"
        audited = command(release, stack, "audit")
        assert audited.returncode == 0, audited.stdout
    finally:
        for client in (guest, desk, mallory):
            client.close()
        command(release, stack, "down")

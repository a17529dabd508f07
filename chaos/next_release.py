"""Makes a copy of the program that is one release further, for rollouts and rollbacks beside this one.

It has one more field in the booking, one more event, one more subscription and one more migration.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import google.api

ROOT = Path(__file__).parents[1]
PACKAGES = ("gotohotel", "order_svc", "pay_svc", "reservation_svc", "mypage_svc", "ops", "protos")
NEW_EVENT = "gotohotel.reservation.v1.GuestGreeted"
NEW_FIELD = "special_request"

# File → (a text that it contains once, its replacement).
CHANGES: dict[str, tuple[tuple[str, str], ...]] = {
    "protos/gotohotel/order/v1/events.proto": (
        ("string owner = 7;", "string owner = 7; string special_request = 20;"),
    ),
    "protos/gotohotel/reservation/v1/events.proto": (
        (
            "// The desk changed a room type, or made a new one.\n",
            "message GuestGreeted {\n"
            "string order_id = 1; int64 version = 2; google.protobuf.Timestamp occur_time = 3;\n"
            "gotohotel.access.v1.Actor actor = 15;\n"
            "}\n",
        ),
    ),
    "order_svc/wire.py": (("owner=booking.owner,", 'owner=booking.owner, special_request="late",'),),
    "pay_svc/domain/payment.py": (
        ('    unknown: bytes = b""', '    unknown: bytes = b""\n    special_request: str = ""'),
    ),
    "reservation_svc/store/reservations.py": (
        ('"check_out": booking.check_out,', '"check_out": booking.check_out, "special_request": "late",'),
    ),
    "reservation_svc/domain/reservation.py": (
        (
            "class Reservation(Aggregate):",
            "class GuestGreeted(Event):\n    pass\n\n\nclass Reservation(Aggregate):",
        ),
        (
            "        self.record(ReservationConfirmed(occurred_at=at, actor=by, confirmation_no=confirmation_no))",
            "        self.record(ReservationConfirmed(occurred_at=at, actor=by, confirmation_no=confirmation_no))\n"
            "        self.record(GuestGreeted(occurred_at=at, actor=by))",
        ),
    ),
    "reservation_svc/domain/__init__.py": (
        (
            "__all__ = [",
            'from reservation_svc.domain.reservation import GuestGreeted\n\n__all__ = [\n    "GuestGreeted",',
        ),
    ),
    "reservation_svc/wire.py": (
        ("    ReservationTaken,\n", "    ReservationTaken,\n    GuestGreeted,\n"),
        (
            "        case ReservationTaken():",
            "        case GuestGreeted():\n"
            "            return events_pb2.GuestGreeted(\n"
            "                order_id=order_id, version=version, occur_time=when, actor=actor\n"
            "            )\n"
            "        case ReservationTaken():",
        ),
    ),
    "order_svc/policies.py": (
        (
            "    ReservationCanceled,\n",
            "    GuestGreeted,\n    ReservationCanceled,\n",
        ),
        (
            "def _order(event",
            "@policies.whenever(GuestGreeted)\n"
            "def note_greeting(event: GuestGreeted, work: UnitOfWork) -> None:\n"
            "    _order(event, work)\n\n\n"
            "def _order(event",
        ),
    ),
    "mypage_svc/policies.py": (
        (
            "def _add(event",
            "@policies.whenever(reservation_events.GuestGreeted)\n"
            "def show_greeting(event: reservation_events.GuestGreeted, work: UnitOfWork) -> None:\n"
            "    _add(event, work)\n\n\n"
            "def _add(event",
        ),
    ),
}
MIGRATION = "ALTER TABLE orders ADD COLUMN special_request text NOT NULL DEFAULT '';\n"


@contextmanager
def next_release() -> Iterator[Path]:
    """The folder of the copy, which is deleted after the block.

    Raises ValueError if a text to replace was not found once.
    """
    with TemporaryDirectory(prefix="gotohotel-next-") as name:
        folder = Path(name)
        for package in PACKAGES:
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("*.pyc.*"))  # being written
        for file, changes in CHANGES.items():
            path = folder / file
            for before, after in changes:
                text = path.read_text()
                if text.count(before) != 1:
                    raise ValueError(f"{file} holds {before!r} {text.count(before)} times")
                path.write_text(text.replace(before, after))
        migrations = folder / "order_svc" / "migrations"
        number = max(int(path.name.split("_")[0]) for path in migrations.glob("*.sql")) + 1
        (migrations / f"{number:04d}_special_request.sql").write_text(MIGRATION)
        _compile(folder)
        yield folder


def migrate(code: Path, home: Path) -> None:
    """Runs that release's `gotohotel migrate` on a running stack. Raises CalledProcessError."""
    environment = {**os.environ, "PYTHONPATH": str(code), "GOTOHOTEL_HOME": str(home)}
    subprocess.run([sys.executable, "-m", "ops", "migrate"], cwd=code, env=environment, check=True, capture_output=True)


def _compile(folder: Path) -> None:
    published = Path(next(iter(google.api.__path__))).parents[1]
    sources = sorted(str(path.relative_to(folder / "protos")) for path in (folder / "protos").rglob("*.proto"))
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", f"-I{published}", "--python_out=."]
    subprocess.run([*protoc, *sources], cwd=folder, check=True)

"""The contract stays compatible with the last release: no field of a client or a stored event is removed or renamed."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tests.conftest import ROOT

BUF = Path(sys.executable).parent / "buf"


def breaking(descriptors: Path) -> subprocess.CompletedProcess[str]:
    """Checks a compiled contract for breaking changes, as `make lint` does."""
    kept = ["--against", "protos/last_release.binpb", "--config", "protos/buf.yaml"]
    return subprocess.run([BUF, "breaking", descriptors, *kept], cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_contract_keeps_what_the_last_release_had() -> None:
    """The current contract has no breaking change."""
    done = breaking(ROOT / "gotohotel" / "descriptors.binpb")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("change", ["removed", "renamed"])
def test_a_field_that_is_removed_or_renamed_fails_the_build(change: str, tmp_path: Path) -> None:
    """Each change alone is reported with the file and the number of the field."""
    contract = FileDescriptorSet.FromString((ROOT / "gotohotel" / "descriptors.binpb").read_bytes())
    file = next(file for file in contract.file if file.name == "gotohotel/order/v1/events.proto")
    booking = next(message for message in file.message_type if message.name == "Booking")
    field = next(field for field in booking.field if field.name == "guest_cnt")
    if change == "removed":
        booking.field.remove(field)
    else:
        field.name, field.json_name = "guests", "guests"
    changed = tmp_path / "changed.binpb"
    changed.write_bytes(contract.SerializeToString())

    done = breaking(changed)

    assert done.returncode == 100
    assert "events.proto" in done.stdout
    assert f'"{field.number}"' in done.stdout

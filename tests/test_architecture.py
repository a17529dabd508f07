"""The rules about imports that keep every line findable."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICES = ("order_svc", "pay_svc", "reservation_svc", "mypage_svc")
SHAPE = {
    "__init__",
    "__main__",
    "server",
    "domain",
    "store",
    "policies",
    "service",
    "wire",
    "clients",
    "processor",
    "jobs",
}
KNOW_PROTOBUF = {"server", "wire", "policies", "clients", "__main__"}
STANDARD_LIBRARY_OF_A_DOMAIN = {"collections", "dataclasses", "datetime", "decimal", "enum", "re", "typing"}


def imports(path: Path) -> set[str]:
    """The modules that a file imports, as `package.module` or `package.module.name`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(package: str) -> list[Path]:
    """The hand-written modules of a package."""
    return [path for path in (ROOT / package).rglob("*.py") if "_pb2" not in path.name]


@pytest.mark.parametrize("service", SERVICES)
def test_a_domain_imports_the_standard_library_and_the_kernels_domain_only(service: str) -> None:
    """Business rules know no database, no network, no message format."""
    allowed = STANDARD_LIBRARY_OF_A_DOMAIN | {"gotohotel"}

    for name in imports(ROOT / service / "domain.py"):
        assert name.split(".")[0] in allowed
        assert not name.startswith("gotohotel.") or name.startswith("gotohotel.domain")


@pytest.mark.parametrize("service", ["order_svc", "pay_svc", "reservation_svc"])
def test_a_use_case_imports_its_own_domain_only(service: str) -> None:
    """A use case is load, tell the aggregate, save; what it loads with is a port of the domain."""
    ours = {name for name in imports(ROOT / service / "service.py") if name.split(".")[0] in (*SERVICES, "gotohotel")}

    allowed = (f"{service}.domain", "gotohotel.domain", "gotohotel.conflicts")
    # What a store may raise at any time: an order stands, even if how its payment went can't be stored at the moment.
    errors = {"gotohotel.database", "gotohotel.database.TRANSIENT"}
    assert all(name.startswith(allowed) for name in ours - errors)


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_imports_another(service: str) -> None:
    """Services share messages, never code."""
    others = set(SERVICES) - {service}

    for path in modules(service):
        assert not {name.split(".")[0] for name in imports(path)} & others, path


def test_the_kernel_imports_no_service() -> None:
    """The kernel is mechanisms only."""
    for path in modules("gotohotel"):
        assert not {name.split(".")[0] for name in imports(path)} & {*SERVICES, "ops", "bench", "chaos"}, path


@pytest.mark.parametrize("service", SERVICES)
def test_messages_appear_only_at_the_edges(service: str) -> None:
    """Protobuf is for server, wire, policies and clients."""
    for path in modules(service):
        if any("_pb2" in name for name in imports(path)):
            assert path.stem in KNOW_PROTOBUF, path


@pytest.mark.parametrize("service", SERVICES)
def test_services_have_one_shape(service: str) -> None:
    """A newcomer who knows one service finds everything in the others."""
    assert {path.stem for path in (ROOT / service).glob("*.py")} <= SHAPE
    assert {"__main__", "server", "domain", "store"} <= {path.stem for path in (ROOT / service).glob("*.py")}


def test_no_generated_code_is_committed() -> None:
    """The build compiles the protos."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "protos/buf.yaml" in listed
    assert not [name for name in listed.splitlines() if "_pb2" in name or name.startswith("gotohotel/descriptors")]

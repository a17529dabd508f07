"""Rules about imports, file sizes and module names that make code easy to find."""

import ast
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

from pay_svc.processor import PROCESSORS

ROOT = Path(__file__).parents[1]
SERVICES = ("order_svc", "pay_svc", "reservation_svc", "mypage_svc")
SHAPE = {
    "__main__",
    "server",
    "domain",
    "store",
    "policies",
    "service",
    "watches",
    "kakao",
    "wire",
    "clients",
    "processor",
    "jobs",
}
KNOW_PROTOBUF = {"server", "wire", "policies", "clients", "__main__"}
PURE = ("gotohotel.domain", "gotohotel.cards", "gotohotel.ids", "gotohotel.texts")
STANDARD_LIBRARY_OF_A_DOMAIN = {"hashlib", "collections", "dataclasses", "datetime", "decimal", "enum", "re", "typing"}


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
    """Business rules do not depend on a database, a network or a message format."""
    allowed = STANDARD_LIBRARY_OF_A_DOMAIN | {"gotohotel"}

    for path in (
        (ROOT / service).glob("domain*") if (ROOT / service / "domain.py").exists() else modules(f"{service}/domain")
    ):
        for name in imports(path):
            assert name.split(".")[0] in {*allowed, service}
            assert not name.startswith("gotohotel.") or name.startswith(PURE)
            assert not name.startswith(f"{service}.") or name.startswith(f"{service}.domain")


@pytest.mark.parametrize("service", ["order_svc", "pay_svc", "reservation_svc"])
def test_a_use_case_imports_its_own_domain_only(service: str) -> None:
    """A use case loads, changes and saves an aggregate through the ports of its own domain."""
    ours = {name for name in imports(ROOT / service / "service.py") if name.split(".")[0] in (*SERVICES, "gotohotel")}

    allowed = (f"{service}.domain", *PURE, "gotohotel.conflicts")
    # Errors that a store may raise at any time: an order stands even if the outcome of its payment can't be stored.
    errors = {"gotohotel.database", "gotohotel.database.TRANSIENT"}
    assert all(name.startswith(allowed) for name in ours - errors)


def test_imports_go_downward() -> None:
    """The import contracts in pyproject.toml hold: layers, and services that do not import one another."""
    done = subprocess.run([ROOT / ".venv/bin/lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout


def test_a_long_file_says_why() -> None:
    """A file has at most 300 lines, unless its first lines give a reason."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        lines = (ROOT / name).read_text().splitlines() if (ROOT / name).exists() else []
        assert len(lines) <= 300 or "Long because" in "\n".join(lines[:6]), f"{name}: {len(lines)} lines"


@pytest.mark.parametrize("service", SERVICES)
def test_messages_appear_only_at_the_edges(service: str) -> None:
    """Only server, wire, policies, clients and __main__ import protobuf messages."""
    for path in modules(service):
        if any("_pb2" in name for name in imports(path)):
            assert path.stem in KNOW_PROTOBUF, path


@pytest.mark.parametrize("service", SERVICES)
def test_services_have_one_shape(service: str) -> None:
    """Every service has the same basic modules, and no module outside the shared set of names."""
    parts = {module.name for module in pkgutil.iter_modules([str(ROOT / service)])}

    adapters = set(PROCESSORS) if service == "pay_svc" else set()
    assert {"__main__", "server", "domain", "store"} <= parts <= SHAPE | adapters


def test_no_generated_code_is_committed() -> None:
    """Protos are committed; the build compiles them."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "protos/buf.yaml" in listed
    assert not [name for name in listed.splitlines() if "_pb2" in name or name.startswith("gotohotel/descriptors")]


@pytest.mark.parametrize("document", ["guards.md", "security.md"])
def test_the_tests_that_a_document_names_exist(document: str) -> None:
    """A promise that names a test has one."""
    named = set(re.findall(r"\btest_\w+\b(?!\.py)", (ROOT / "docs" / document).read_text()))
    listed = subprocess.run(["git", "ls-files", "tests"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    source = "\n".join((ROOT / name).read_text() for name in listed.splitlines() if name.endswith(".py"))

    assert named
    assert {name for name in named if not re.search(rf"def {name}\(", source)} == set()

"""Compiles protos/ into gotohotel/, and the texts in */locale/, at every build; generated files are never committed."""

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import google.api
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent


def compile_protos() -> None:
    """Writes the Python modules, their type stubs, the descriptor set that Envoy reads, and the OpenAPI description."""
    published = Path(next(iter(google.api.__path__))).parents[1]
    sources = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos").rglob("*.proto"))
    protoc = [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos", f"-I{published}"]
    types = [f"--plugin={Path(sysconfig.get_path('scripts'), 'protoc-gen-mypy_grpc')}", "--mypy_grpc_out=quiet:."]
    code = ["--python_out=.", "--pyi_out=.", "--grpc_python_out=.", *types]
    subprocess.run([*protoc, *code, *sources], cwd=ROOT, check=True)
    # Imported by no proto of ours, but Envoy needs it to write error details as JSON.
    details = ["google/rpc/status.proto", "google/rpc/error_details.proto"]
    describe = ["--include_imports", "--include_source_info", "--descriptor_set_out=gotohotel/descriptors.binpb"]
    subprocess.run([*protoc, *describe, *sources, *details], cwd=ROOT, check=True)
    sys.path.insert(0, str(ROOT))
    from gotohotel import openapi

    openapi.write(ROOT / "gotohotel" / "descriptors.binpb", ROOT / "gotohotel" / "openapi.json")


def compile_texts() -> None:
    """Writes a catalogue in gettext's binary form beside each .po file."""
    for source in ROOT.glob("*/locale/*.po"):
        with source.open("rb") as texts, source.with_suffix(".mo").open("wb") as compiled:
            write_mo(compiled, read_po(texts, abort_invalid=True))


class CompileProtos(BuildHookInterface[Any]):
    """Hatchling's hook, run before a wheel or an editable install is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - the hook's signature
        compile_protos()
        compile_texts()
        build_data["artifacts"] += ["gotohotel/**/*_pb2.py", "gotohotel/**/*_pb2.pyi", "gotohotel/**/*_pb2_grpc.py*"]
        build_data["artifacts"] += ["gotohotel/descriptors.binpb", "gotohotel/openapi.json", "*/locale/*.mo"]


if __name__ == "__main__":
    compile_protos()
    compile_texts()

"""Builds or pushes the images with docker or podman: `make images`, `make push REGISTRY=…`."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ops.services import SERVICES, part

ROOT = Path(__file__).parents[1]
# Image → the Dockerfile's target, and the service that it is for.
IMAGES = {
    **{part(name): ("service", name) for name in SERVICES},
    "gateway": ("gateway", ""),
    "operator": ("operator", ""),
}
SBOM = ROOT / "dist" / "sbom"


def version() -> str:
    """The images' tag: TAG, or the release's version."""
    return os.environ.get("TAG") or str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def tag(image: str) -> str:
    """An image's name on this machine, as the chart calls it."""
    return f"gotohotel-{image}:{version()}"


def is_list(engine: str, platforms: str) -> bool:
    """Whether what is built is a list: podman's way to keep an image of several platforms under one name."""
    return engine == "podman" and "," in platforms


def build_command(engine: str, image: str, options: Sequence[str] = (), platforms: str = "") -> list[str]:
    """The command that builds an image, for this machine or for platforms such as linux/amd64,linux/arm64."""
    target, service = IMAGES[image]
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    arguments = {"SERVICE": service, "VERSION": version(), "REVISION": revision.stdout.strip() or "unknown"}
    given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    name = ["--manifest" if is_list(engine, platforms) else "--tag", tag(image)]
    command = [engine, "build", "--target", target, *given, *options]
    command += [*(["--platform", platforms] if platforms else []), *name]
    return [*command, "--file", str(ROOT / "images" / "Dockerfile"), str(ROOT)]


def forget_commands(image: str) -> list[list[str]]:
    """Commands that take an image's name from what has it, a list or not: a build would add to a list."""
    return [["podman", "manifest", "rm", tag(image)], ["podman", "untag", tag(image)]]


def write_sbom(image: str) -> None:
    """Writes the list of an image's Python packages (CycloneDX)."""
    SBOM.mkdir(parents=True, exist_ok=True)
    locked = ROOT / "images" / f"{IMAGES[image][0]}.txt"
    program = Path(sys.executable).parent / "cyclonedx-py"
    file = SBOM / f"gotohotel-{image}.cdx.json"
    subprocess.run([program, "requirements", locked, "--output-file", file], check=True)


def engine_of(environment: Mapping[str, str]) -> str:
    """ENGINE, or docker if its daemon answers, or podman. Exits if there is none."""
    if engine := environment.get("ENGINE"):
        return engine
    for engine in ("docker", "podman"):
        if shutil.which(engine) and not subprocess.run([engine, "info"], capture_output=True, check=False).returncode:
            return engine
    sys.exit("Neither docker nor podman runs here.")


def build(engine: str, base: str, platforms: str) -> None:
    """Builds all images on this machine, with their lists of packages."""
    options = ["--build-arg", f"PYTHON_IMAGE={base}"] if base else []
    for image in IMAGES:
        for command in forget_commands(image) if is_list(engine, platforms) else []:
            subprocess.run(command, capture_output=True, check=False)
        subprocess.run(build_command(engine, image, options, platforms), check=True)
        write_sbom(image)
        shown = subprocess.run([engine, "image", "inspect", tag(image)], capture_output=True, text=True, check=True)
        [described] = json.loads(shown.stdout)
        print(f"{tag(image):28} {described['Size'] / 1e6:.0f} MB")


def push(engine: str, registry: str) -> None:
    """Pushes what was built here."""
    if not registry:
        sys.exit("Name the registry: make push REGISTRY=registry.example.org/hotel")
    for image in IMAGES:
        there = f"{registry}/{tag(image)}"
        asked = ["podman", "manifest", "exists", tag(image)]
        if engine == "podman" and not subprocess.run(asked, capture_output=True, check=False).returncode:
            subprocess.run(["podman", "manifest", "push", "--all", tag(image), f"docker://{there}"], check=True)
            continue
        subprocess.run([engine, "tag", tag(image), there], check=True)
        subprocess.run([engine, "push", there], check=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["push"]:
        push(engine_of(os.environ), os.environ.get("REGISTRY", ""))
    else:
        build(engine_of(os.environ), os.environ.get("IMAGE_BASE", ""), os.environ.get("PLATFORM", ""))

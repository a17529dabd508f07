"""Builds or pushes the images with docker or podman: `make images`, `make push REGISTRY=…`."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops.services import SERVICES, part

ROOT = Path(__file__).parents[1]
# Image → the Dockerfile's target, and the service that it is for.
IMAGES = {
    **{part(name): ("service", name) for name in SERVICES},
    "gateway": ("gateway", ""),
    "operator": ("operator", ""),
}
# Platforms for which every package has wheels → the names that their machines give themselves.
PLATFORMS = {"linux/amd64": ("x86_64", "amd64"), "linux/arm64": ("aarch64", "arm64")}
REVISION = "org.opencontainers.image.revision"
SBOM = ROOT / "dist" / "sbom"


@dataclass(frozen=True, slots=True)
class Engine:
    """Docker or podman, and the name of its program."""

    program: str
    is_podman: bool

    def name(self, image: str) -> str:
        """An image's full name on this machine. Podman would also find a short one in another registry."""
        return f"localhost/{tag(image)}" if self.is_podman else tag(image)


def engine_of(environment: Mapping[str, str]) -> Engine:
    """ENGINE, or docker if its daemon answers, or podman. Exits if there is none."""
    programs = [environment["ENGINE"]] if environment.get("ENGINE") else ["docker", "podman"]
    for program in programs:
        if shutil.which(program) and not subprocess.run([program, "info"], capture_output=True, check=False).returncode:
            said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
            return Engine(program, is_podman="podman" in said)  # which may call itself docker
    sys.exit(f"{' or '.join(programs)} does not run here.")


def native_platform() -> str:
    """This machine's platform. Exits if there are no images for it."""
    for name, machines in PLATFORMS.items():
        if platform.machine() in machines:
            return name
    sys.exit(f"There are no images for {platform.machine()}.")


def platforms_of(environment: Mapping[str, str]) -> list[str]:
    """PLATFORM, one or several with commas between, or the machine's. Exits if there are no images for one."""
    chosen = [each.strip() for each in environment.get("PLATFORM", "").split(",") if each.strip()]
    for each in chosen:
        if each not in PLATFORMS:
            sys.exit(f"PLATFORM is {each}: it can be {', '.join(PLATFORMS)}.")
    return sorted(set(chosen)) or [native_platform()]


def version() -> str:
    """The images' tag: TAG, or the release's version."""
    return os.environ.get("TAG") or str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def tag(image: str) -> str:
    """An image's name as the chart calls it."""
    return f"gotohotel-{image}:{version()}"


def build_command(engine: Engine, image: str, platforms: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """The command that builds an image. Podman keeps several platforms as a list of images, a manifest."""
    target, service = IMAGES[image]
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    arguments = {"SERVICE": service, "VERSION": version(), "REVISION": revision.stdout.strip() or "unknown"}
    return [
        *(engine.program, "build", "--target", target, "--platform", ",".join(platforms)),
        *(word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")),
        *options,
        *("--manifest" if engine.is_podman and len(platforms) > 1 else "--tag", engine.name(image)),
        *("--file", str(ROOT / "images" / "Dockerfile"), str(ROOT)),
    ]


def write_sbom(image: str) -> None:
    """Writes the list of an image's Python packages (CycloneDX), as they are locked."""
    SBOM.mkdir(parents=True, exist_ok=True)
    locked = ROOT / "images" / f"{IMAGES[image][0]}.txt"
    program = Path(sys.executable).parent / "cyclonedx-py"
    file = SBOM / f"gotohotel-{image}.cdx.json"
    subprocess.run([program, "requirements", locked, "--output-file", file], check=True)


def build(engine: Engine, platforms: Sequence[str], options: Sequence[str]) -> None:
    """Builds all images on this machine, with their lists of packages. Raises CalledProcessError."""
    for image in IMAGES:
        if engine.is_podman:
            # A build for several platforms would add to an old list, and can't replace an image that is not a list.
            name = engine.name(image)
            for command in (["manifest", "rm", name], ["untag", name, name]):
                subprocess.run([engine.program, *command], capture_output=True, check=False)
        subprocess.run(build_command(engine, image, platforms, options), check=True)
        write_sbom(image)
        described = _inspect(engine, image)
        print(f"{tag(image):28} {described['Size'] / 1e6:.0f} MB, {described['Os']}/{described['Architecture']}")
    print(f"Built for {', '.join(platforms)}.")


def push(engine: Engine, registry: str) -> None:
    """Pushes what was built here. Exits if the images are not of one commit; raises CalledProcessError."""
    if not registry:
        sys.exit("Name the registry: make push REGISTRY=registry.example.org/hotel")
    if len({_inspect(engine, image)["Config"]["Labels"][REVISION] for image in IMAGES}) > 1:
        sys.exit("The images are of different commits: run make images again.")
    for image in IMAGES:
        name, remote = engine.name(image), f"{registry}/{tag(image)}"
        exists = [engine.program, "manifest", "exists", name]
        if engine.is_podman and not subprocess.run(exists, capture_output=True, check=False).returncode:
            subprocess.run([engine.program, "manifest", "push", "--all", name, f"docker://{remote}"], check=True)
        else:
            subprocess.run([engine.program, "tag", name, remote], check=True)
            subprocess.run([engine.program, "push", remote], check=True)


def _inspect(engine: Engine, image: str) -> dict[str, Any]:
    """What the engine knows about an image; of several platforms, about the machine's. Exits if there is none."""
    shown = subprocess.run(
        [engine.program, "image", "inspect", engine.name(image)], capture_output=True, text=True, check=False
    )
    if shown.returncode:
        sys.exit(f"There is no image {tag(image)}: run make images.")
    return dict(json.loads(shown.stdout)[0])


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Builds, or pushes if that is the argument. Exits with 1 if it can't."""
    engine = engine_of(environment)
    try:
        if arguments == ["push"]:
            push(engine, environment.get("REGISTRY", ""))
        else:
            base = environment.get("IMAGE_BASE")
            build(engine, platforms_of(environment), ["--build-arg", f"PYTHON_IMAGE={base}"] if base else [])
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(map(str, error.cmd[:3]))} has failed.")


if __name__ == "__main__":
    main(sys.argv[1:], os.environ)

"""Images for another platform than this machine's: the kernel emulates it, and a registry gets them for both."""

import platform as machine
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from ops import ports
from ops.supervision import wait_until

PACKAGES = ("qemu-user-static", "binfmt-support", "arch-test", "docker-registry")
# A platform → what Debian calls its architecture, and what Linux and wheels call it.
ARCHITECTURES = {"linux/amd64": ("amd64", "x86_64"), "linux/arm64": ("arm64", "aarch64")}
BINFMT = Path("/proc/sys/fs/binfmt_misc")
INDEX = "application/vnd.oci.image.index.v1+json"
REGISTRY = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def native() -> str:
    """This machine's platform. Exits if the images are not made for it."""
    for platform, (_, name) in ARCHITECTURES.items():
        if name == machine.machine():
            return platform
    sys.exit(f"There are no images for {machine.machine()}.")


def other(platform: str) -> str:
    """The platform that is asked for, or nothing, if none is or it is this machine's. Exits if it is none of ours."""
    if platform and platform not in ARCHITECTURES:
        sys.exit(f"PLATFORM is {platform}: it can be {' or '.join(ARCHITECTURES)}.")
    return "" if platform == native() else platform


def emulate(platform: str) -> None:
    """Lets the kernel run the platform's programs, in containers, too."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=True)
    subprocess.run(["update-binfmts", "--enable", f"qemu-{ARCHITECTURES[platform][1]}"], check=True)


def wheels(platform: str) -> list[str]:
    """Options of `pip download` for the platform's wheels, under the names that the locked packages use."""
    names = [f"{each}_{ARCHITECTURES[platform][1]}" for each in ("manylinux2014", "manylinux_2_28", "manylinux_2_31")]
    return ["--python-version=3.11", "--implementation=cp", *(f"--platform={each}" for each in names)]


@contextmanager
def registry(folder: Path, port: int) -> Iterator[str]:
    """A registry on loopback, without TLS; its address."""
    config = folder / "registry.yml"
    config.write_text(REGISTRY.format(folder=folder / "registry", port=port))
    with (folder / "registry.log").open("w") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
        try:
            wait_until(lambda: ports.accepts(port), "the registry does not start", seconds=30)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def of(address: str, image: str) -> set[str]:
    """The platforms for which a registry has an image, such as hotel/gotohotel-order:0.1.0."""
    name, tag = image.split(":")
    found = httpx.get(f"http://{address}/v2/{name}/manifests/{tag}", headers={"Accept": INDEX}).raise_for_status()
    return {"{os}/{architecture}".format(**each["platform"]) for each in found.json().get("manifests", [])}

"""Another platform than this machine's: the kernel emulates it; and a registry, to which images are pushed."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from images.build import PLATFORMS
from ops import ports
from ops.supervision import wait_until

PACKAGES = ("qemu-user-static", "binfmt-support", "arch-test")
BINFMT = Path("/proc/sys/fs/binfmt_misc")
INDEX = "application/vnd.oci.image.index.v1+json"
REGISTRY = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {folder}/registry}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


def emulate(platform: str) -> None:
    """Lets the kernel run the platform's programs, also in containers."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", BINFMT], check=True)
    subprocess.run(["update-binfmts", "--enable", f"qemu-{PLATFORMS[platform][0]}"], check=True)


def wheels(platform: str) -> list[str]:
    """Options of `pip download` for the platform's wheels: the tags that the locked packages have."""
    tags = [f"{each}_{PLATFORMS[platform][0]}" for each in ("manylinux2014", "manylinux_2_28", "manylinux_2_31")]
    return ["--python-version=3.11", "--implementation=cp", *(f"--platform={each}" for each in tags)]


@contextmanager
def registry(folder: Path, port: int) -> Iterator[str]:
    """Runs Debian's registry on loopback, without TLS, from a folder: the package is not installed. Its address."""
    subprocess.run(["apt-get", "download", "-qq", "docker-registry"], cwd=folder, check=True)
    [package] = folder.glob("docker-registry_*.deb")
    subprocess.run(["dpkg-deb", "--extract", package, folder / "unpacked"], check=True)
    config = folder / "registry.yml"
    config.write_text(REGISTRY.format(folder=folder, port=port))
    with (folder / "registry.log").open("w") as log:
        program = folder / "unpacked" / "usr" / "bin" / "docker-registry"
        process = subprocess.Popen([program, "serve", config], stdout=log, stderr=log)
        try:
            wait_until(lambda: ports.accepts(port), "the registry does not start", seconds=30)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def platforms_in(registry_address: str, image: str) -> set[str]:
    """The platforms for which a registry has an image, such as hotel/gotohotel-order:0.1.0."""
    name, tag = image.split(":")
    url = f"http://{registry_address}/v2/{name}/manifests/{tag}"
    found = httpx.get(url, headers={"Accept": INDEX}).raise_for_status().json()
    return {"{os}/{architecture}".format(**each["platform"]) for each in found.get("manifests", [])}

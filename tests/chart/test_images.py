"""The commands that build images. `make containers` runs podman's."""

import os
import stat
from pathlib import Path

import pytest

from images.build import PLATFORMS, Engine, build_command, engine_of, native_platform, platforms_of

DOCKER = Engine("docker", is_podman=False)
PODMAN = Engine("podman", is_podman=True)


@pytest.mark.parametrize(
    ("engine", "platforms", "option"),
    [(PODMAN, [*PLATFORMS], "--manifest"), (DOCKER, [*PLATFORMS], "--tag"), (PODMAN, ["linux/arm64"], "--tag")],
)
def test_only_podman_keeps_several_platforms_as_a_list(engine: Engine, platforms: list[str], option: str) -> None:
    """Docker keeps them under the tag."""
    command = build_command(engine, "order", platforms)

    assert command[command.index(engine.name("order")) - 1] == option
    assert command[command.index("--platform") + 1] == ",".join(platforms)


@pytest.mark.parametrize("said", ["podman version 4.3.1", "Docker version 29.0.1, build 1"])
def test_podman_is_known_under_the_name_of_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """Debian's package podman-docker has a program docker, which is podman."""
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\n[ $1 != --version ] || echo {said}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    assert engine_of({}) == Engine("docker", is_podman=said.startswith("podman"))


def test_only_platforms_that_all_packages_have_can_be_chosen() -> None:
    """Other ones would fail minutes later. Without any it is the machine's, whatever the engine has pulled before."""
    assert platforms_of({"PLATFORM": "linux/arm64, linux/amd64,"}) == ["linux/amd64", "linux/arm64"]
    assert platforms_of({}) == [native_platform()]
    with pytest.raises(SystemExit, match="PLATFORM is linux/s390x"):
        platforms_of({"PLATFORM": "linux/amd64,linux/s390x"})

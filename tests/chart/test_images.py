"""The commands that build the images. `make containers` runs them."""

import pytest

from images.build import build_command, tag

BOTH = "linux/amd64,linux/arm64"


@pytest.mark.parametrize(
    ("engine", "platforms", "name"),
    [
        ("podman", BOTH, "--manifest"),
        ("docker", BOTH, "--tag"),
        ("podman", "linux/arm64", "--tag"),
        ("podman", "", "--tag"),
    ],
)
def test_only_podman_keeps_an_image_of_several_platforms_as_a_list(engine: str, platforms: str, name: str) -> None:
    """Docker keeps it under its tag, as both keep an image of one platform."""
    command = build_command(engine, "order", platforms=platforms)

    assert command[command.index(tag("order")) - 1] == name
    assert ("--platform" in command) == bool(platforms)
    assert not platforms or command[command.index("--platform") + 1] == platforms

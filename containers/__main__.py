"""`make containers`, as root on Debian: builds the images, runs the manifests in containers, and breaks them."""

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from containers import platforms
from containers.engine import PACKAGES, Podman, install
from containers.pods import Pod, Pods
from containers.stuck import only_event_loop_is_stopped, stop_event_loop
from helm.rendering import CHART, RELEASE, Object, render, values_of
from images.build import IMAGES, PLATFORMS, native_platform, platforms_of, tag
from ops.errors import StackError
from ops.services import SERVICES, part
from ops.supervision import wait_until

START_SECONDS = 300
EMULATED_START_SECONDS = 600
PATIENCE_SECONDS = 90
ENVOYS_LOG_SECONDS = 11  # Envoy writes its access log every ten seconds
# None of these belongs in an image that serves: compilers, tests, what fetches packages.
NOT_INSIDE = ("gcc", "cc", "make", "git", "curl", "pip", "pytest", "mypy", "protoc")


class Steps:
    """Prints a line per step, and remembers whether all of them held."""

    def __init__(self) -> None:
        self.held = True

    def note(self, what: str, holds: bool, more: str = "") -> None:
        """One step's verdict."""
        self.held &= holds
        print(f"{'holds' if holds else 'FAILS':<6} {what}{f': {more}' if more else ''}", flush=True)


def values() -> Object:
    """The laptop's values, with two of each service, and a gateway whose Service has the port of its container."""
    chosen = values_of("laptop")
    for name in SERVICES:
        chosen[part(name)] = {**chosen[part(name)], "replicas": 2}
    chosen["gateway"] = {**chosen["gateway"], "service": {"port": 8088}}
    chosen["image"] = {"pullPolicy": "Never"}
    return chosen


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition holds in time."""
    try:
        wait_until(condition, "", seconds=seconds)
    except StackError:
        return False
    return True


def look_at_images(podman: Podman, platform: str, steps: Steps) -> None:
    """What is in them, and what is not."""
    sizes = []
    for image in IMAGES:
        described = podman.inspect(tag(image))
        sizes.append(f"{image} {described['Size'] / 1e6:.0f} MB")
        machine = podman.run("run", "--rm", "--network=none", "--entrypoint=uname", tag(image), "-m", check=False)
        steps.note(f"the image {image} is for {platform}", machine.stdout.strip() in PLATFORMS[platform])
        asked = "; ".join(f"! command -v {program}" for program in NOT_INSIDE)
        clean = podman.run("run", "--rm", "--network=none", "--entrypoint=sh", tag(image), "-ec", asked, check=False)
        user = described["Config"]["User"]
        steps.note(f"the image {image} runs as a user without rights", user == "10001:10001")
        steps.note(f"the image {image} has no compiler and no tests", clean.returncode == 0, clean.stdout.strip())
        labels = described["Config"]["Labels"]
        steps.note(f"the image {image} says what it is", "org.opencontainers.image.revision" in labels)
    steps.note("sizes, with the base image of this run", True, ", ".join(sizes))


def smoke(podman: Podman, pods: Pods, pod: Object, steps: Steps, what: str) -> None:
    """Runs what `helm test` runs; if it fails, shows what the others logged."""
    done = pods.run_to_its_end(pod)
    said = (done.stderr if done.returncode else done.stdout).strip().splitlines() or ["it says nothing"]
    steps.note(what, done.returncode == 0, said[-1][:2000])
    if done.returncode:
        show(podman, [each for component in ("gateway", *map(part, SERVICES)) for each in pods.of(component)])


def heal(podman: Podman, pods: Pods, steps: Steps) -> None:
    """A service that hangs, or whose event loop is stuck, is started again; one whose database is away is not."""
    [hanging, other] = pods.of("order")
    before = hanging.restarts
    podman.run("kill", "--signal=STOP", hanging.name)
    steps.note("order_svc is stopped in the middle (SIGSTOP): it is not ready", wait(lambda: not hanging.ready, 30))
    steps.note("it does not live, and is started again", wait(lambda: hanging.restarts > before, PATIENCE_SECONDS))
    steps.note("it is ready again; the other one was all the time", wait(lambda: hanging.ready, PATIENCE_SECONDS))
    steps.note("nobody else was started again", other.restarts == 0)

    pid = podman.inspect(other.name)["State"]["Pid"]
    stop_event_loop(pid)
    steps.note(
        "the other one's event loop is stuck, and no other thread", wait(lambda: only_event_loop_is_stopped(pid), 10)
    )
    steps.note("it does not live, and is started again", wait(lambda: other.restarts > 0, PATIENCE_SECONDS))
    steps.note("it is ready again", wait(lambda: other.ready, PATIENCE_SECONDS))

    [postgres] = pods.of("postgres")
    services = [pod for name in SERVICES for pod in pods.of(part(name))]
    counts = [pod.restarts for pod in services]
    sessions = clients_of(podman, postgres)
    podman.run("network", "disconnect", "--force", "gotohotel", postgres.name)
    steps.note("PostgreSQL is cut off: no service is ready", wait(lambda: not any(p.ready for p in services), 60))
    asked = [pod.asked["livenessProbe"] for pod in services]
    enough = services[0].container["livenessProbe"]["failureThreshold"] + 2
    wait(
        lambda: all(p.asked["livenessProbe"] >= n + enough for p, n in zip(services, asked, strict=True)),
        PATIENCE_SECONDS,
    )
    alive = [pod.asked["livenessProbe"] - before for pod, before in zip(services, asked, strict=True)]
    steps.note("each was asked whether it lives, often enough to be started again", min(alive) >= enough)
    steps.note("none of them is started again", [pod.restarts for pod in services] == counts)
    podman.run("network", "connect", f"--alias={postgres.aliases[0]}", "gotohotel", postgres.name)
    steps.note("it is back: all are ready", wait(lambda: all(p.ready for p in services), PATIENCE_SECONDS))
    wait(lambda: not sessions & clients_of(podman, postgres), PATIENCE_SECONDS)
    left = sessions & clients_of(podman, postgres)
    ended = bool(sessions) and not left
    steps.note(f"PostgreSQL has ended the {len(sessions)} sessions that were cut off", ended, ", ".join(sorted(left)))


def clients_of(podman: Podman, postgres: Pod) -> set[str]:
    """Address and port of each session's client: PostgreSQL's processes have them in their titles."""
    titles = podman.run("top", postgres.name, "args").stdout
    return set(re.findall(r"[\d.]+\(\d+\)", titles))


def run(podman: Podman, platform: str, steps: Steps) -> None:
    """All steps."""
    chosen = values()
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    podman.build_all({store: defaults[store]["builtin"]["image"] for store in ("postgres", "nats")})
    look_at_images(podman, platform, steps)
    rendered = render(chosen)
    [test] = rendered.of("Pod")
    pods = Pods(podman, rendered)
    with podman.network():
        try:
            begun = time.monotonic()
            pods.start()
            patience = START_SECONDS if platform == native_platform() else EMULATED_START_SECONDS
            all_ready = wait(lambda: all(pod.ready for pod in pods.pods), patience)
            late = [pod.name for pod in pods.pods if not pod.ready]
            steps.note("everything is started at once, and gets ready", all_ready, ", ".join(late))
            if not all_ready:
                show(podman, [pod for pod in pods.pods if not pod.ready])
                return
            print(f"       ready after {time.monotonic() - begun:.0f} s, {len(pods.pods)} pods")
            smoke(podman, pods, test, steps, "what `helm test` runs passes")
            heal(podman, pods, steps)
            smoke(podman, pods, test, steps, "what `helm test` runs passes afterwards")
            [operator] = pods.of("toolbox")
            audited = pods.execute(operator, "gotohotel", "audit")
            steps.note("the audit finds nothing", audited.returncode == 0, audited.stdout if audited.returncode else "")
            saved = pods.execute(operator, "gotohotel", "backup", "/var/lib/gotohotel/backup")
            steps.note("the operator makes a backup", saved.returncode == 0, saved.stderr.strip())
            pods.stop()
            drain(pods, steps)
        finally:
            pods.stop()
    if platform != native_platform():
        for image, found in podman.push().items():
            steps.note(f"a registry has the image {image} for {', '.join(sorted(found))}", found == set(PLATFORMS))


def drain(pods: Pods, steps: Steps) -> None:
    """Told to end, each ends by itself, in its grace."""
    for component in (*map(part, SERVICES), "gateway"):
        status = pods.end(pods.of(component)[0])
        steps.note(f"{component} drains and ends by itself", status == 0, f"status {status}")


def show(podman: Podman, pods: list[Pod]) -> None:
    """The last lines of each."""
    time.sleep(ENVOYS_LOG_SECONDS)
    for pod in pods:
        logs = podman.run("logs", "--tail", "10", pod.name, check=False)
        print(f"--- {pod.name}\n{logs.stdout[-3000:]}{logs.stderr[-3000:]}")


def main() -> None:
    """Exits with 1 if a step fails."""
    [platform, *more] = platforms_of(os.environ)
    if more:
        sys.exit("make containers takes one platform.")
    emulated = platform != native_platform()
    install([*PACKAGES, *(platforms.PACKAGES if emulated else [])])
    if emulated:
        platforms.emulate(platform)
    steps = Steps()
    print(
        f"The chart's release {RELEASE}, in containers, on {platform}{' (emulated)' if emulated else ''}.", flush=True
    )
    with tempfile.TemporaryDirectory(prefix="gotohotel-containers-", ignore_cleanup_errors=True) as folder:
        run(Podman(Path(folder), platform), platform, steps)
    sys.exit(0 if steps.held else 1)


if __name__ == "__main__":
    main()

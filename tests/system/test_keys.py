"""The gateway's certificate, the keys of tokens, and other issuers of tokens."""

import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from ops import certificates, configuration, tokens
from ops import stack as ops_stack
from ops.errors import StackError
from ops.stack import Stack
from tests.conftest import Hotel, wait_for
from tests.gateways import ADDRESSES, client_from, running_envoy

ISSUER = "https://issuer.example"


@contextmanager
def configured_gateway(stack: Stack, folder: Path) -> Iterator[Stack]:
    """Another gateway to the same services, with this environment's settings and keys of its own."""
    free = Stack.on_free_ports(folder).ports
    twin = Stack(folder, {**stack.ports, "gateway": free["gateway"], "egress": free["egress"]})
    shutil.copytree(stack.home / "tls", folder / "tls")
    tokens.make_key(folder)
    configuration.write_gateway(twin)
    with running_envoy(twin):
        wait_for(lambda: twin._gateway_answers())
        yield twin


def bearer(token: str) -> dict[str, str]:
    """The header of a token."""
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture
def localhost(tmp_path: Path) -> Path:
    """The folder of a certificate for localhost."""
    certificates.make(tmp_path / "issued", [])
    certificates.issue(tmp_path / "issued" / "authority", tmp_path / "issued" / "localhost", "localhost")
    return tmp_path / "issued" / "localhost"


@pytest.mark.parametrize("http2", [True, False])
def test_the_gateway_speaks_tls(
    hotel: Hotel, tmp_path: Path, localhost: Path, monkeypatch: pytest.MonkeyPatch, http2: bool
) -> None:
    """With HTTP/2 and HTTP/1.1, and with HSTS on every answer, refusals included. Nothing is answered without TLS."""
    monkeypatch.setenv("GOTOHOTEL_TLS_CERTIFICATE", str(localhost / "tls.crt"))
    monkeypatch.setenv("GOTOHOTEL_TLS_KEY", str(localhost / "tls.key"))
    home = tmp_path / "home"
    home.mkdir()
    with configured_gateway(hotel.stack, home) as twin:
        assert twin.gateway_url == f"https://localhost:{twin.ports['gateway']}"
        trusted = ssl.create_default_context(cafile=str(localhost / "ca.crt"))
        headers = bearer(twin.token(subject="alice", role="guest"))
        with httpx.Client(base_url=twin.gateway_url, verify=trusted, http2=http2, timeout=20) as client:
            answers = [
                client.get("/rooms"),
                client.get("/orders", headers=headers),
                client.get("/orders"),
                client.get("/nowhere", headers=headers),
                client.post("/orders", headers=headers, json={"cardno": "x"}),
                client.get("/rooms%2f"),
            ]
        with socket.create_connection(("localhost", twin.ports["gateway"]), timeout=5) as plain:
            plain.sendall(b"GET /rooms HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answered_without = plain.recv(100)

    assert [answer.status_code for answer in answers] == [200, 200, 401, 404, 400, 400]
    assert {answer.http_version for answer in answers} == {"HTTP/2" if http2 else "HTTP/1.1"}
    assert {answer.headers["strict-transport-security"] for answer in answers} == {"max-age=31536000"}
    assert not answered_without.startswith(b"HTTP")


def test_without_a_certificate_there_is_no_hsts(hotel: Hotel) -> None:
    """A browser that has seen the header refuses plain HTTP."""
    assert "strict-transport-security" not in httpx.get(f"{hotel.stack.gateway_url}/rooms").headers


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"TLS_CERTIFICATE": __file__}, "GOTOHOTEL_TLS_CERTIFICATE and GOTOHOTEL_TLS_KEY go together"),
        ({"TLS_CERTIFICATE": "/nowhere", "TLS_KEY": __file__}, "GOTOHOTEL_TLS_CERTIFICATE takes a file that exists"),
        ({"OIDC_ISSUER": "https://issuer"}, "GOTOHOTEL_OIDC_ISSUER and GOTOHOTEL_OIDC_KEYS_URL (https) go together"),
        ({"OIDC_ISSUER": "x", "OIDC_KEYS_URL": "http://issuer/keys"}, "(https) go together"),
    ],
)
def test_settings_that_do_not_fit_are_one_clear_sentence(
    hotel: Hotel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], sentence: str
) -> None:
    """Before anything is started."""
    for name, value in variables.items():
        monkeypatch.setenv(f"GOTOHOTEL_{name}", value)

    with pytest.raises(StackError) as refusal, configured_gateway(hotel.stack, tmp_path):
        pass

    assert sentence in str(refusal.value)


def test_the_key_changes_without_an_outage(hotel: Hotel, tmp_path: Path) -> None:
    """A guest calls all the time, with a token of the old key, and new guests with new ones: no call fails.

    The old key is valid until the key changes again.
    """
    with configured_gateway(hotel.stack, tmp_path) as twin, httpx.Client(base_url=twin.gateway_url) as client:
        old = twin.token(subject="alice", role="guest")
        statuses: list[int] = []
        done = threading.Event()

        def call() -> None:
            while not done.is_set():
                both = (old, twin.token(subject="bob", role="guest"))
                statuses.extend(client.get("/orders", headers=bearer(token)).status_code for token in both)
                time.sleep(0.02)

        caller = threading.Thread(target=call)
        caller.start()
        try:
            twin.rotate_token_key()
            changed = len(statuses)
            wait_for(lambda: len(statuses) > changed + 20)
        finally:
            done.set()
            caller.join()
        new = twin.token(subject="alice", role="guest")
        assert jwt.get_unverified_header(new)["kid"] != jwt.get_unverified_header(old)["kid"]
        assert set(statuses) == {200}

        twin.rotate_token_key()

        wait_for(lambda: client.get("/orders", headers=bearer(old)).status_code == 401)
        assert client.get("/orders", headers=bearer(new)).status_code == 200


def test_a_key_that_the_gateway_does_not_take_is_not_used(
    hotel: Hotel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens go on being signed with the key that is accepted."""
    with configured_gateway(hotel.stack, tmp_path) as twin:
        before = twin.token(subject="a", role="guest")
        twin.rotate_token_key()
        old = tokens.key_id(twin.home)
        write_keys = configuration.write_keys
        monkeypatch.setattr(configuration, "write_keys", lambda _: None)
        monkeypatch.setattr(ops_stack, "NEW_KEY_SECONDS", 1)
        with pytest.raises(StackError, match="does not accept the new key"):
            twin.rotate_token_key()

        assert tokens.key_id(twin.home) == old
        write_keys(twin)  # as any later command does
        with httpx.Client(base_url=twin.gateway_url) as client:
            for token in (before, twin.token(subject="a", role="guest")):
                assert client.get("/orders", headers=bearer(token)).status_code == 200


class Issuer(ThreadingHTTPServer):
    """Takes many connections at once: the gateway's filter chains all ask at the same time."""

    request_queue_size = 128


@contextmanager
def issuer(certificate: Path, key_set: dict[str, object]) -> Iterator[str]:
    """A small OIDC issuer over HTTPS; yields the URL of its keys."""

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(key_set).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = Issuer(("127.0.0.1", 0), Keys)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "tls.crt", certificate / "tls.key")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}/keys.json"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_tokens_of_another_issuer_are_accepted(
    hotel: Hotel, tmp_path: Path, localhost: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its keys are fetched over HTTPS; the same is demanded of its tokens. Those of the stack stay valid."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = json.loads(ECAlgorithm.to_jwk(key.public_key()))
    home = tmp_path / "home"
    home.mkdir()

    def signed(**changes: object) -> dict[str, str]:
        now = int(time.time())
        claims = {
            "iss": "https://issuer.example",
            "aud": "gotohotel",
            "sub": "carol",
            "role": "guest",
            "exp": now + 600,
        }
        return bearer(jwt.encode({**claims, **changes}, key, "ES256", headers={"kid": "k1"}))

    with issuer(localhost, {"keys": [{**public, "kid": "k1", "alg": "ES256", "use": "sig"}]}) as keys_url:
        monkeypatch.setenv("GOTOHOTEL_OIDC_ISSUER", ISSUER)
        monkeypatch.setenv("GOTOHOTEL_OIDC_KEYS_URL", keys_url)
        monkeypatch.setenv("GOTOHOTEL_OIDC_AUTHORITY", str(localhost / "ca.crt"))
        with configured_gateway(hotel.stack, home) as twin, httpx.Client(base_url=twin.gateway_url) as client:
            # Each filter chain fetches the keys by itself. At the other address of this name, if any, nobody listens.
            for address in ADDRESSES:
                with client_from(twin, address) as other:
                    assert other.get("/orders", headers=signed(sub=address), timeout=20).status_code == 200
            assert client.get("/orders", headers=bearer(twin.token(subject="a", role="guest"))).status_code == 200
            for name in ("ISSUER", "KEYS_URL", "AUTHORITY"):
                monkeypatch.delenv(f"GOTOHOTEL_OIDC_{name}")  # the operator's other shell
            twin.rotate_token_key()
            wait_for(lambda: client.get("/orders", headers=signed()).status_code == 200)
            for wrong in ({"aud": "another"}, {"iss": tokens.ISSUER}, {"exp": int(time.time()) - 600}, {"sub": "\n"}):
                assert client.get("/orders", headers=signed(**wrong)).status_code == 401, wrong
            assert client.get("/reservations", headers=signed()).status_code == 403
            assert client.get("/reservations", headers=signed(role="desk")).status_code == 200

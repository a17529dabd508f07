"""A KakaoTalk provider for laptops and tests: NHN's AlimTalk API v2.3 over real HTTP, scripted by the number's end.

    0001  taken, and the connection closed without an answer   1005  taken, answered after twenty seconds
    0429  HTTP 429, twice                                      0500  HTTP 500, twice
    9999  system error, twice                                  3004  the template is not approved, twice
    5000  the number is refused                                3008  taken, permanent failure
    3018  taken, delivered as SMS                              3006  taken, system error, delivered next time
    0200  taken, answered twice

Every other number is delivered. The log has a line for each message taken, and survives the process.
"""

import io
import json
import os
import re
import sys
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mypage_svc.kakao import MAX_TEXT_LENGTH, template_text
from ops.errors import StackError

APP_KEY, SECRET_KEY, SENDER_KEY = "laptop", "laptop-secret", "0123456789" * 4
LOG = "kakao.jsonl"
KEY_SECONDS = 600  # how long an idempotency key is refused
LATE_SECONDS = 20
TWICE = {"0429": 429, "0500": 500}
CODES_TWICE = {"9999": -9999, "3004": -3004}
RESULTS = {"3008": ("FAILED", "3008", "RSC01"), "3018": ("FAILED", "3018", "RSC04")}
DELIVERED = ("COMPLETED", "1000", "RSC01")


def is_wanted() -> bool:
    """KAKAO=fake: messages go to this provider; otherwise (console, or empty) they are logged."""
    if (text := os.environ.get("KAKAO", "")) not in ("", "console", "fake"):
        raise StackError(f"The setting KAKAO takes console or fake, not {text!r}.")
    return text == "fake"


class FakeProvider:
    """What the provider knows."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._keys: dict[str, float] = {}
        self._failed: Counter[tuple[str, str]] = Counter()
        self._taken: dict[str, dict[str, Any]] = {}  # by request id
        self._by_key: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self._first: dict[tuple[str, str], str] = {}  # order and template → request id
        for line in log.read_text().splitlines() if log.exists() else ():
            self._keep(json.loads(line))

    def _keep(self, taken: dict[str, Any]) -> None:
        self._taken[taken["requestId"]] = taken
        self._by_key[taken["recipientGroupingKey"]].append(taken)
        self._first.setdefault((taken["orderId"], taken["templateCode"]), taken["requestId"])

    def take(self, body: Any, key: str) -> tuple[int, dict[str, Any], str]:
        """HTTP status, answer, and the end of the number."""
        fault = _fault_of(body)
        if fault:
            return 200, _header(-1010, fault), ""
        [to] = body["recipientList"]
        end, script = to["recipientNo"][-4:], (to["recipientNo"], key)
        with self._lock:
            if time.time() - self._keys.get(key, 0.0) < KEY_SECONDS:
                return 200, _header(-1005, "the idempotency key was used"), end
            self._failed[script] += 1
            if self._failed[script] <= 2 and end in TWICE:
                return TWICE[end], {}, end
            if self._failed[script] <= 2 and end in CODES_TWICE:
                return 200, _header(CODES_TWICE[end], "scripted"), end
            result = {"recipientSeq": 1, "recipientNo": to["recipientNo"], "resultCode": 0, "resultMessage": "success"}
            if end == "5000":
                result["resultCode"] = -5000
                return 200, _header(0, message={"requestId": "", "sendResults": [result]}), end
            self._keys[key] = time.time()
            taken = {
                "requestId": f"r{len(self._taken) + 1:08}",
                "recipientSeq": 1,
                "recipientNo": to["recipientNo"],
                "templateCode": body["templateCode"],
                "recipientGroupingKey": to["recipientGroupingKey"],
                "orderId": to["templateParameter"]["orderId"],
            }
            self._keep(taken)
            with self._log.open("a") as log:
                log.write(json.dumps(taken) + "\n")
            return 200, _header(0, message={"requestId": taken["requestId"], "sendResults": [result]}), end

    def listed(self, grouping_key: str) -> dict[str, Any]:
        """The messages with this key."""
        with self._lock:
            found = list(self._by_key.get(grouping_key, ()))
        return {**_header(0), "messageSearchResultResponse": {"messages": found, "totalCount": len(found)}}

    def result(self, request_id: str) -> dict[str, Any]:
        """What became of a message."""
        with self._lock:
            found = self._taken.get(request_id)
            if found is None:
                return _header(-1000, "there is no such message")
            end = found["recipientNo"][-4:]
            is_first = self._first[found["orderId"], found["templateCode"]] == request_id
        status, code, resend = RESULTS.get(end, DELIVERED)
        if end == "3006" and is_first:
            status, code = "FAILED", "3006"
        return _header(0, message={**found, "messageStatus": status, "resultCode": code, "resendStatus": resend})


def _header(code: int, text: str = "success", **more: Any) -> dict[str, Any]:
    return {"header": {"resultCode": code, "resultMessage": text, "isSuccessful": code == 0}, **more}


def _fault_of(body: Any) -> str:
    """What is wrong with a request, or ""."""
    try:
        [to] = body["recipientList"]
        text = template_text(body["templateCode"])
        wanted = set(re.findall(r"#{(\w+)}", text))
        for name, value in to["templateParameter"].items():
            text = text.replace(f"#{{{name}}}", value)
        checks = {
            "senderKey": body["senderKey"] == SENDER_KEY,
            "templateCode": len(body["templateCode"]) <= 20,
            "templateParameter": set(to["templateParameter"]) == wanted,
            "text": len(text) <= MAX_TEXT_LENGTH,
            "recipientNo": bool(re.fullmatch(r"01\d{8,9}", to["recipientNo"])),
            "recipientGroupingKey": len(to["recipientGroupingKey"]) <= 100,
        }
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        return f"malformed: {error!r}"
    return ", ".join(name for name, is_good in checks.items() if not is_good)


class Handler(BaseHTTPRequestHandler):
    """The API's paths."""

    provider: FakeProvider
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Takes a message."""
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self._is_allowed() or self._path() != "/messages":
            self._answer(200, _header(-1000, "the key, the secret or the path is wrong"))
            return
        try:
            body = json.loads(content)
        except ValueError:
            body = None
        key = self.headers.get("X-NC-API-IDEMPOTENCY-KEY") or ""
        status, answer, end = self.provider.take(body, key)
        if end == "0001" and answer["header"]["isSuccessful"]:
            self.close_connection = True
            return
        if end == "1005" and answer["header"]["isSuccessful"]:
            time.sleep(LATE_SECONDS)
        times = 2 if end == "0200" and answer["header"]["isSuccessful"] else 1
        self._answer(status, answer, times=times)

    def do_GET(self) -> None:
        """Lists messages, or returns the result of one."""
        path = self._path()
        found = re.fullmatch(r"/messages/(\w+)/\d+", path)
        if not self._is_allowed():
            self._answer(200, _header(-1000, "the key or the secret is wrong"))
        elif found:
            self._answer(200, self.provider.result(found[1]))
        elif path == "/messages":
            query = parse_qs(urlsplit(self.path).query)
            self._answer(200, self.provider.listed(query.get("recipientGroupingKey", [""])[0]))
        else:
            self._answer(404, {})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's signature
        """Writes nothing: paths may have numbers in them."""

    def _path(self) -> str:
        return urlsplit(self.path).path.removeprefix(f"/alimtalk/v2.3/appkeys/{APP_KEY}")

    def _is_allowed(self) -> bool:
        return self.headers.get("X-Secret-Key") == SECRET_KEY

    def _answer(self, status: int, answer: dict[str, Any], *, times: int = 1) -> None:
        content = json.dumps(answer).encode()
        connection, self.wfile = self.wfile, io.BytesIO()  # several answers arrive together
        for _ in range(times):
            self.send_response(status)
            self.send_header("Content-Type", "application/json;charset=UTF-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        answers, self.wfile = self.wfile.getvalue(), connection
        try:
            self.wfile.write(answers)
        except OSError:
            self.close_connection = True  # the caller has given up


class Server(ThreadingHTTPServer):
    """A thread for each connection; many callers may connect at once."""

    request_queue_size = 128
    daemon_threads = True


def serve(port: int, log: Path) -> ThreadingHTTPServer:
    """The server, listening on loopback; the caller runs it."""
    handler = type("BoundHandler", (Handler,), {"provider": FakeProvider(log)})
    return Server(("127.0.0.1", port), handler)


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2])).serve_forever()

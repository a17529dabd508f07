"""docs/errors.md lists every reason that a caller can get, and says whether the call may be repeated."""

import re
from importlib import import_module

from google.rpc import code_pb2, error_details_pb2

from gotohotel import domain
from gotohotel.rpc import status
from ops.gateway.refusals import LOCAL_REPLIES
from tests.conftest import ROOT

KINDS = (
    *(domain.DomainError, domain.NotFound, domain.Invalid, domain.Conflict, domain.AlreadyExists),
    *(domain.WrongState, domain.TooMany),
)
ROW = re.compile(r"^\| `([A-Z_]+)` \| (\d+) \| ([A-Z_]+) \| (true|false) \|", re.MULTILINE)


def documented() -> dict[str, tuple[int, str, bool]]:
    """Reason → HTTP status, gRPC code, whether it is retryable."""
    text = (ROOT / "docs" / "errors.md").read_text()
    return {reason: (int(http), code, again == "true") for reason, http, code, again in ROW.findall(text)}


def subclasses(kind: type[domain.DomainError]) -> set[type[domain.DomainError]]:
    """All classes below this one."""
    return {kind} | {found for child in kind.__subclasses__() for found in subclasses(child)}


def errors() -> list[domain.DomainError]:
    """One of each domain error of the program."""
    domains = ("order_svc.domain", "pay_svc.domain", "reservation_svc.domain", "mypage_svc.domain")
    for name in (*domains, "gotohotel.idempotency"):
        import_module(name)
    found = sorted(subclasses(domain.DomainError) - set(KINDS), key=lambda kind: kind.__qualname__)
    ours = [
        kind
        for kind in found
        if kind.__module__.startswith(("gotohotel.", "order_", "pay_", "reservation_", "mypage_"))
    ]
    return [kind(retry_after_seconds=1) if issubclass(kind, domain.TooMany) else kind() for kind in ours]


def test_every_domain_error_is_documented() -> None:
    """With the code and the metadata that a caller gets."""
    table = documented()
    for error in errors():
        sent = status.status_of(error)
        info = error_details_pb2.ErrorInfo()
        assert sent.details[0].Unpack(info)
        _, code, retryable = table[info.reason]
        assert code_pb2.Code.Name(sent.code) == code, info.reason
        assert info.metadata["retryable"] == str(retryable).lower(), info.reason


def test_every_reason_of_the_gateway_and_the_kernel_is_documented() -> None:
    """Its own answers, those of its scripts, and those that every service has."""
    table = documented()
    for http, (code, reason, _, _) in LOCAL_REPLIES.items():
        assert table[reason][:2] == ({403: 401}.get(http, http), code_pb2.Code.Name(code)), reason
    scripts = "\n".join(path.read_text() for path in (ROOT / "envoy").glob("*.lua"))
    written = set(re.findall(r'"(\d{3})", "([A-Z_]+)"', scripts))
    assert {reason for _, reason in written} | set(re.findall(r'reason = "([A-Z_]+)"', scripts)) <= set(table)
    assert {(int(http), reason) for http, reason in written} <= {
        (http, reason) for reason, (http, _, _) in table.items()
    }
    source = (ROOT / "gotohotel" / "rpc" / "status.py").read_text()
    assert set(re.findall(r'code_pb2\.[A-Z_]+,\s+"([A-Z_]+)"', source)) <= set(table)


def test_no_reason_is_documented_that_nothing_sends() -> None:
    """The table is not longer than the truth."""
    known = {error.reason() for error in errors()} | {reply[1] for reply in LOCAL_REPLIES.values()}
    texts = [(ROOT / "gotohotel" / "rpc" / "status.py").read_text()]
    texts += [path.read_text() for path in (ROOT / "envoy").glob("*.lua")]
    known |= {reason for text in texts for reason in re.findall(r'"([A-Z][A-Z_]+)"', text)}

    assert set(documented()) <= known

"""Translates errors to google.rpc.Status; this is the only place for RPCs."""

import logging
from typing import Any

import asyncpg
import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from gotohotel import language
from gotohotel.database import TRANSIENT
from gotohotel.domain import AlreadyExists, Conflict, DomainError, Invalid, NotFound, TooMany, WrongState
from gotohotel.ids import new_id
from gotohotel.rpc.identity import PermissionDenied, Unauthenticated

logger = logging.getLogger(__name__)


class Unavailable(Exception):
    """A part that this call needs can't be reached now; the call is safe to retry."""

    def __init__(self, message: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeadlineExceeded(Exception):
    """The deadline passed; the outcome of the call is unknown."""


class Overloaded(Exception):
    """Too many concurrent calls: no further ones are started."""


async def abort(context: Any, status: status_pb2.Status) -> None:
    """Ends a call with a status."""
    # Only abort() puts the status where Envoy's outlier detection and retries see it; set_code() puts it into trailers.
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    await context.abort(code, status.message, details)


def status_of(error: Exception) -> status_pb2.Status:
    """The google.rpc.Status for an error."""
    match error:
        case DecodeError():
            return _status(code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", "malformed request message")
        case Invalid():
            violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.description)
            bad_request = error_details_pb2.BadRequest(field_violations=[violation])
            return _status(code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", str(error), bad_request)
        case NotFound():
            return _status(code_pb2.NOT_FOUND, error.reason(), str(error))
        case AlreadyExists():
            return _status(code_pb2.ALREADY_EXISTS, error.reason(), str(error))
        case Conflict():
            return _status(code_pb2.ABORTED, error.reason(), str(error), retryable=error.retryable)
        case WrongState():
            return _status(code_pb2.FAILED_PRECONDITION, error.reason(), str(error))
        case TooMany():
            return _status(
                code_pb2.RESOURCE_EXHAUSTED,
                error.reason(),
                str(error),
                _retry_info(error.retry_after_seconds),
                retryable=True,
            )
        case DomainError():
            return _status(code_pb2.FAILED_PRECONDITION, error.reason(), str(error))
        case Unauthenticated():
            return _status(code_pb2.UNAUTHENTICATED, "UNAUTHENTICATED", "missing credentials")
        case PermissionDenied():
            return _status(
                code_pb2.PERMISSION_DENIED, "PERMISSION_DENIED", "the caller's role does not permit this call"
            )
        case DeadlineExceeded():
            return _status(
                code_pb2.DEADLINE_EXCEEDED,
                "DEADLINE_EXCEEDED",
                "deadline exceeded; the outcome is unknown: fetch the resource before retrying",
                retryable=True,
            )
        case Overloaded():
            return _status(
                code_pb2.RESOURCE_EXHAUSTED, "TOO_BUSY", "too many concurrent calls", _retry_info(1.0), retryable=True
            )
        case Unavailable():
            return _unavailable(str(error), error.retry_after_seconds)
        case _ if isinstance(error, TRANSIENT):
            logger.warning("the database is away or overloaded: %r", error)
            return _unavailable("the database is unavailable", 1.0)
        case asyncpg.CharacterNotInRepertoireError() | asyncpg.UntranslatableCharacterError():
            return _status(
                code_pb2.INVALID_ARGUMENT, "INVALID_ARGUMENT", "a text contains a character that can't be stored"
            )
        case _:
            error_id = new_id()
            logger.error("internal error %s", error_id, exc_info=error)
            return _status(code_pb2.INTERNAL, "INTERNAL", f"internal error {error_id}")


def _unavailable(message: str, retry_after_seconds: float) -> status_pb2.Status:
    return _status(code_pb2.UNAVAILABLE, "UNAVAILABLE", message, _retry_info(retry_after_seconds), retryable=True)


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(int(seconds * 1000))
    return retry


def _status(code: int, reason: str, message: str, *details: Message, retryable: bool = False) -> status_pb2.Status:
    status = status_pb2.Status(code=code, message=message)
    metadata = {"retryable": str(retryable).lower()}  # whether the same call may succeed later
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain="gotohotel", metadata=metadata), *details):
        status.details.add().Pack(detail)
    if text := language.of_error(reason):
        localized = error_details_pb2.LocalizedMessage(locale=language.current(), message=text)
        status.details.add().Pack(localized)
    return status

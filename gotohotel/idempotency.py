"""Makes a mutating request safe to repeat: the same id and body return the same answer."""

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message

from gotohotel.claims import ABANDONED_AFTER_SECONDS, IdempotencyKey, LiveClaims
from gotohotel.database import TRANSIENT, Connection, Database, Row, in_batches
from gotohotel.domain import AlreadyExists, Conflict, DomainError
from gotohotel.texts import parse_key

logger = logging.getLogger(__name__)

RELEASE_SECONDS = 0.5  # the caller is waiting, and has waited for a failure already

CLAIM = """
INSERT INTO requests (subject, method, request_id, fingerprint)
VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING
RETURNING request_id
"""

FIND = """
SELECT
    fingerprint,
    resource_id,
    response,
    claimed_at
FROM requests
WHERE subject = $1
  AND method = $2
  AND request_id = $3
"""

TAKE_OVER = """
UPDATE requests
SET claimed_at = now()
WHERE subject = $1
  AND method = $2
  AND request_id = $3
  AND response IS NULL
  AND claimed_at = $4
  AND claimed_at <= now() - make_interval(secs => $5)
RETURNING request_id
"""

RENEW = """
UPDATE requests
SET claimed_at = now()
FROM unnest($1::text[], $2::text[], $3::text[]) AS live (subject, method, request_id)
WHERE requests.subject = live.subject
  AND requests.method = live.method
  AND requests.request_id = live.request_id
  AND requests.response IS NULL
"""

RELEASE = """
DELETE FROM requests
WHERE subject = $1
  AND method = $2
  AND request_id = $3
  AND response IS NULL
"""

ANSWER = """
WITH answered AS (
    UPDATE requests
    SET response = $4
    WHERE subject = $1
      AND method = $2
      AND request_id = $3
      AND response IS NULL
    RETURNING request_id
)
SELECT count(*) FROM answered
"""

R = TypeVar("R", bound=Message)


PRUNE = """
DELETE FROM requests
WHERE (subject, method, request_id) IN (
    SELECT subject, method, request_id FROM requests WHERE claimed_at < $1 ORDER BY claimed_at LIMIT 1000
)
"""
KEEP = timedelta(days=30)


async def prune(database: Database, *, now: datetime) -> None:
    """Deletes request ids older than thirty days."""
    await in_batches(database, PRUNE, now - KEEP)


class RequestIdReused(AlreadyExists):
    """The request id was used before with another body."""


class RequestInProgress(Conflict):
    """The same request is being answered at this moment; try again."""


class IdempotencyStore:
    """The requests that a service has answered or is answering."""

    def __init__(self, database: Database, secret: bytes) -> None:
        self._database = database
        self._secret = secret
        self._live = LiveClaims()

    def claim_of(self, request: Any, *, subject: str) -> IdempotencyKey | None:
        """The claim that a request makes; None if it has no request id. Raises Invalid if the id is too long."""
        request_id = parse_key(request.request_id, "requestId", limit=64)
        if not request_id:
            return None
        body = request.SerializeToString(deterministic=True)
        digest = hmac.new(self._secret, body, hashlib.sha256).digest()
        return IdempotencyKey(subject, request.DESCRIPTOR.name, request_id, digest)

    async def once(
        self, request: Message, response_type: type[R], act: Callable[[Connection], Awaitable[R]], *, subject: str
    ) -> R:
        """Runs `act` in one transaction with its claim and its answer. A repetition returns the stored answer."""
        claim = self.claim_of(request, subject=subject)
        async with self._database.transaction() as connection:
            if claim is None:
                return await act(connection)
            if await self.claim(connection, claim):
                response = await act(connection)
                await self.answer(connection, claim, response)
                return response
        kept = await self._find(claim)
        if kept["response"] is None:  # left by another release, which acts in steps: `once` leaves no such claim
            raise RequestInProgress()
        return response_type.FromString(kept["response"])

    async def in_steps(
        self, request: Message, response_type: type[R], act: Callable[[], Awaitable[R]], *, subject: str
    ) -> R:
        """Runs an `act` that commits several times and is safe to repeat.

        A repetition of the request returns the stored answer.

        If the process dies in between, a repetition runs `act` again.
        """
        claim = self.claim_of(request, subject=subject)
        if claim is None:
            return await act()
        with self._live.acting(claim):
            claimed = await self.claim(self._database.autocommit, claim)
            if claimed:
                return await self._act_and_keep(claim, act)
        replay = await self.replay(claim, response_type)
        if replay is not None:
            return replay
        with self._live.acting(claim):
            return await self._act_and_keep(claim, act)

    async def in_one_statement(
        self,
        request: Message,
        response_type: type[R],
        act: Callable[[IdempotencyKey | None], Awaitable[R]],
        resume: Callable[[str], Awaitable[R]],
        *,
        subject: str,
    ) -> R:
        """Runs an `act` whose first statement creates a resource and claims the id with it.

        A repetition returns the stored answer, whatever `act` would return now. If the process died before there was an
        answer, the repetition continues: `resume` gets the resource's id.
        """
        claim = self.claim_of(request, subject=subject)
        with self._live.acting(claim):
            try:
                response = await act(claim)
            except DomainError as error:
                refusal = error
            else:
                await self.keep_answer(claim, response)
                return response
        if claim is None or not await self.is_known(claim):
            raise refusal
        replay = await self.replay(claim, response_type)
        if replay is not None:
            return replay
        with self._live.acting(claim):
            response = await resume(await self.resource_of(claim))
            await self.keep_answer(claim, response)
            return response

    async def _act_and_keep(self, claim: IdempotencyKey, act: Callable[[], Awaitable[R]]) -> R:
        try:
            response = await act()
        except Exception:
            await self._release(claim)
            raise
        await self.keep_answer(claim, response)
        return response

    async def keep_answer(self, claim: IdempotencyKey | None, response: Message) -> None:
        """Stores the answer of an act that is committed already.

        If the database is away, the change is committed nevertheless.
        """
        try:
            await self.answer(self._database.autocommit, claim, response)
        except TRANSIENT as error:
            logger.warning("the change is committed, but its answer could not be stored: %r", error)
            self._live.note_ended(claim)

    async def renew(self) -> None:
        """The job that renews the claims of calls that take longer than a second."""
        if keys := self._live.to_renew():
            await self._database.autocommit.execute(RENEW, *(list(column) for column in zip(*keys, strict=True)))

    async def _release(self, claim: IdempotencyKey) -> None:
        """Frees the id after a failure."""
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                await self._database.autocommit.execute(RELEASE, *claim.key)
        except TRANSIENT:
            self._live.note_ended(claim)

    async def claim(self, connection: Connection, claim: IdempotencyKey) -> bool:
        """Claims the id. Returns False if it is taken; then call `replay`."""
        row = await connection.fetchval(CLAIM, *claim.key, claim.fingerprint)
        return row is not None

    async def answer(self, connection: Connection, claim: IdempotencyKey | None, response: Message) -> None:
        """Stores the answer for repetitions."""
        if claim is not None:
            await connection.fetch_one(ANSWER, *claim.key, response.SerializeToString(), lock_order=claim.key)

    async def replay(self, claim: IdempotencyKey, response_type: type[R]) -> R | None:
        """Returns the answer stored under a taken id, and waits for it while another call works on it.

        Returns None if that call ended without an answer: the id now belongs to the caller, who continues from the
        stored state. Raises RequestIdReused if the body differs.
        """
        pause = 0.02
        while True:
            row = await self._find(claim)
            if row["response"] is not None:
                return response_type.FromString(row["response"])
            patience = 0 if self._live.is_orphaned(claim) else ABANDONED_AFTER_SECONDS
            taken = await self._database.autocommit.fetchval(TAKE_OVER, *claim.key, row["claimed_at"], patience)
            if taken is not None:
                self._live.forget(claim)
                return None
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.5)

    async def _find(self, claim: IdempotencyKey) -> Row:
        row = await self._database.autocommit.fetchrow(FIND, *claim.key)
        if row is None:
            raise RequestInProgress()
        if not hmac.compare_digest(row["fingerprint"], claim.fingerprint):
            raise RequestIdReused()
        return row

    async def is_known(self, claim: IdempotencyKey) -> bool:
        """Whether the id was used before."""
        return await self._database.autocommit.fetchrow(FIND, *claim.key) is not None

    async def resource_of(self, claim: IdempotencyKey) -> str:
        """The id of the resource that the claimed request created."""
        [row] = await self._database.autocommit.fetch(FIND, *claim.key)
        return str(row["resource_id"])

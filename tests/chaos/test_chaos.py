"""Tests of the rig itself. `make chaos` runs all scenarios, and tests/system/test_readme.py one of them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chaos import scenarios  # noqa: F401 - registers them
from chaos.__main__ import run
from chaos.load import OK, REFUSED, Operation
from chaos.next_release import next_release
from chaos.rig import Rig
from chaos.scenario import Scenario
from chaos.verdict import Verdict, compare
from ops.audit import AuditSnapshot


def test_a_run_that_breaks_nothing_and_one_that_loses_something_fail(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run without a fault is void, and a run that loses an order fails, with two replicas of each service too."""

    monkeypatch.setattr("ops.audit.PATIENCE_SECONDS", 2)

    async def nothing(_: Rig) -> None:
        """Injects no fault."""

    async def loss(rig: Rig) -> None:
        rig.nemesis.note("loss", "an order")
        booked = await rig.caller("victim").book()
        await rig.sql("order_svc", "UPDATE orders SET id = uuidv7() WHERE id = $1", booked.order_id)

    idle, losing = (
        Scenario(number=0, name=act.__name__, sentence="", run=act, load=False, one_retry_helps=False)
        for act in (nothing, loss)
    )

    assert not run([idle, losing], seed=1, replicas=2)

    told = capsys.readouterr().out
    assert re.search(r"^0 nothing .* void$", told, re.MULTILINE), told
    assert "no fault was injected" in told
    assert re.search(r"^0 loss .* FAILS$", told, re.MULTILINE), told
    assert "lost: the acknowledged order" in told
    assert "A1:" in told
    for kept in re.findall(r"the logs are in (\S+)", told):
        assert len(list(Path(kept).glob("order_svc*.log"))) == 2
        shutil.rmtree(kept)


def test_the_next_release_can_be_loaded() -> None:
    """The changes that scenario 25 makes to its copy of the program still apply, and its services can be imported."""
    names = ("order_svc", "pay_svc", "reservation_svc", "mypage_svc")
    with next_release() as folder:
        program = ";".join(f"import {name}.__main__" for name in names)
        environment = {**os.environ, "PYTHONPATH": str(folder)}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True
        )

    assert done.returncode == 0, done.stderr


NOTHING_ELSE = {"cancel_asked_at": None, "rejected_at": None}
PAID = {"cardNo": "4242 4242 4242 4242"}


def order(**changes: object) -> dict[str, object]:
    """A row of the table orders."""
    return {"id": "1", "name": "guest 1", "status": "PAID", "paid_at": "now", **NOTHING_ELSE, **changes}


@pytest.mark.parametrize(
    ("operation", "orders", "found"),
    [
        (Operation(kind="book", request={}, label="guest 1", order_id="1", outcome=OK), [], "lost"),
        (
            Operation(kind="book", request={}, label="guest 1", order_id="1", outcome=OK),
            [order(), order(id="2")],
            "doubled",
        ),
        (
            Operation(kind="book", request={}, label="guest 1", outcome=REFUSED, first_outcome=REFUSED),
            [order()],
            "doubled",
        ),
        (Operation(kind="cancel", request={}, order_id="1", outcome=OK), [order()], "lost"),
        (Operation(kind="desk confirm", request={}, order_id="1", outcome=OK), [order()], "lost"),
        (
            Operation(kind="pay", request={}, order_id="1", outcome=OK, answer={"status": "PAID"}),
            [order(paid_at=None)],
            "lost",
        ),
        (
            Operation(
                kind="book",
                request={"cardNo": "4000000000000002"},
                label="guest 1",
                order_id="1",
                outcome=OK,
                answer={"status": "PAYMENT_PENDING", "paymentError": {"reason": "CARD_DECLINED"}},
            ),
            [order()],
            "doubled",
        ),
        (Operation(kind="book", request=PAID, label="guest 1", order_id="1", outcome=OK), [order()], ""),
        (
            Operation(kind="probe", request=PAID, order_id="1", outcome=OK, answer={"status": "PAID"}),
            [order(paid_at=None)],
            "lost",
        ),
        (Operation(kind="cancel", request={}, order_id="1", outcome=OK), [order(status="CANCELED")], ""),
    ],
)
def test_an_answer_that_the_books_do_not_bear_out_is_found(
    operation: Operation, orders: list[dict[str, object]], found: str
) -> None:
    """The verdict compares the answer that a client received with the stored order."""
    verdict = Verdict()

    compare([operation], AuditSnapshot(orders={str(row["id"]): row for row in orders}), verdict)

    assert bool(verdict.lost) == (found == "lost")
    assert bool(verdict.doubled) == (found == "doubled")

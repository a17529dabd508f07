"""Identifiers."""

from datetime import UTC, datetime, timedelta

import pytest

from gotohotel.domain import Invalid
from gotohotel.ids import first_id_at, new_id, parse_id

AN_ID = "01981f6e-0000-7000-8000-000000000000"


def test_ids_sort_by_the_time_of_their_making() -> None:
    """Sorting by id gives the order of creation."""
    ids = [new_id() for _ in range(100)]

    assert sorted(ids) == ids


def test_the_first_id_of_a_time_is_not_after_an_id_made_then() -> None:
    """Rows older than a time can be found by their primary key."""
    now = datetime.now(UTC)

    assert first_id_at(now - timedelta(seconds=1)) < new_id() < first_id_at(now + timedelta(minutes=1))


@pytest.mark.parametrize("text", ["42", f"urn:uuid:{AN_ID}", f"{{{AN_ID}}}", AN_ID.replace("-", ""), ""])
def test_an_id_that_is_none_is_refused_by_field(text: str) -> None:
    """The error contains the field's JSON name. Only the canonical form is an id."""
    with pytest.raises(Invalid) as refusal:
        parse_id(text, "orderId")

    assert refusal.value.field == "orderId"

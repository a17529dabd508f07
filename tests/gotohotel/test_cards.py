"""Card numbers in texts."""

import pytest

from gotohotel.cards import find_card_numbers, passes_luhn


@pytest.mark.parametrize("number", ["4242424242424242", "4000000000000002", "378282246310005"])
def test_card_numbers_pass_luhn(number: str) -> None:
    """Published test numbers pass; with another check digit they fail."""
    assert passes_luhn(number)
    assert not passes_luhn(number[:-1] + str((int(number[-1]) + 1) % 10))


def test_an_identifier_is_no_card_number() -> None:
    """UUIDs, trace contexts, hashes, phone numbers and times contain many digits, but no card number."""
    assert find_card_numbers("+82 10-1234-5678, 2026-11-22T11:16:53.523+00:00, [2933] 2026/11/22 11:16:52.804338") == []
    assert find_card_numbers("E0000 00:00:1795351365.720316   30272 config.cc:137]") == []
    assert find_card_numbers("order 00000000-0000-4242-4242-424242424242") == []
    assert find_card_numbers(f"00-{'42' * 16}-{'42' * 8}-01") == []
    assert find_card_numbers("sha256:5dd49b27206348028610363696f7a2c8fbfa7f307127e0aa6e063aa5d91e1a59)") == []
    assert find_card_numbers("4242" * 16) != []

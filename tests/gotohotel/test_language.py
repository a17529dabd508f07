"""The caller's language, and the catalogues of texts."""

import re
from pathlib import Path

import pytest
from babel.messages.pofile import read_po
from google.rpc import code_pb2, error_details_pb2

from gotohotel import language
from gotohotel.domain import Conflict
from gotohotel.rpc.status import status_of
from mypage_svc.policies import policies
from tests.conftest import ROOT

FOLDERS = sorted(path.parent for path in ROOT.glob("*/locale/ko.po"))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", "ko"),
        ("en", "en"),
        ("en-US,en;q=0.9,ko;q=0.8", "en"),
        ("ko-KR, en;q=0.9", "ko"),
        ("de, en;q=0.5", "en"),
        ("EN;q=0.2, KO;q=0.1", "en"),
        ("en, ko", "en"),
        ("en;q=0", "ko"),
        ("en;q=x", "ko"),
        ("en;q=nan, ko;q=0.1", "ko"),
        ("*", "ko"),
        (",;=,;q=", "ko"),
    ],
)
def test_the_language_is_the_one_that_the_caller_prefers(header: str, expected: str) -> None:
    """By quality and then by order; Korean if none is known."""
    assert language.negotiate(header) == expected


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.parent.name)
def test_every_text_is_there_in_every_language(folder: Path) -> None:
    """With the same values to fill in."""
    texts = {}
    for name in language.LANGUAGES:
        with (folder / f"{name}.po").open("rb") as file:
            texts[name] = {str(entry.id): str(entry.string) for entry in read_po(file) if entry.id}
    assert texts["ko"].keys() == texts["en"].keys()
    for key, text in texts["ko"].items():
        assert text
        assert sorted(re.findall(r"{\w+}", text)) == sorted(re.findall(r"{\w+}", texts["en"][key]))


def test_every_event_of_the_timeline_has_a_sentence() -> None:
    """In both languages, with its values filled in."""
    texts = language.Texts(ROOT / "mypage_svc" / "locale")
    for subject in policies.subjects:
        for name in language.LANGUAGES:
            text = texts.get(subject.rsplit(".", 1)[-1], name, detail="X", amount="1 KRW")
            assert text
            assert "{" not in text


def test_an_error_that_a_guest_may_read_has_a_text_in_her_language() -> None:
    """google.rpc.LocalizedMessage; an error between services has none."""

    class SoldOut(Conflict):
        """No room is left."""

    class PaymentChanged(Conflict):
        """Between services."""

    language.use(ROOT / "order_svc" / "locale")
    for header, expected in (("en", "No room is left for these dates."), ("", "선택한 날짜에 남은 객실이 없습니다.")):
        language.enter(header)
        status = status_of(SoldOut())
        localized = error_details_pb2.LocalizedMessage()
        assert status.details[-1].Unpack(localized)
        assert localized.message == expected
        assert localized.locale == (header or "ko")
    assert status.code == code_pb2.ABORTED
    assert len(status_of(PaymentChanged()).details) == 1

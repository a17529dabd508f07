"""The caller's language, and texts in it: gettext catalogues, compiled by the build from the .po files beside them."""

import gettext
from contextvars import ContextVar
from pathlib import Path

LANGUAGES = ("ko", "en")  # the first one is the default
_KERNEL = Path(__file__).parent / "locale"

_language: ContextVar[str] = ContextVar("language", default=LANGUAGES[0])


def enter(accept_language: str | None) -> None:
    """Sets the language of this call from its header Accept-Language (RFC 9110)."""
    _language.set(negotiate(accept_language or ""))


def current() -> str:
    """The language of this call."""
    return _language.get()


def negotiate(accept_language: str) -> str:
    """The language that the caller prefers of those that there are; the default if none is named."""
    qualities: dict[str, float] = {}
    for position, entry in enumerate(accept_language.split(",")):
        tag, _, parameter = entry.strip().partition(";")
        language = tag.strip().lower().split("-")[0]
        if language in LANGUAGES:
            # Of equal qualities the first one counts.
            qualities.setdefault(language, _quality(parameter) - position / 1_000_000)
    language, quality = max(qualities.items(), key=lambda item: item[1], default=(LANGUAGES[0], 0.0))
    return language if quality > 0 else LANGUAGES[0]


def _quality(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    try:
        return min(max(float(value), 0.0), 1.0) if name.strip() == "q" else 1.0
    except ValueError:
        return 0.0


class Texts:
    """The texts of one or several folders, by key and language."""

    def __init__(self, *folders: Path) -> None:
        self._catalogues: dict[str, gettext.NullTranslations] = {}
        for language in LANGUAGES:
            catalogue = gettext.NullTranslations()
            for folder in folders:
                with (folder / f"{language}.mo").open("rb") as file:
                    found = gettext.GNUTranslations(file)
                found.add_fallback(catalogue)
                catalogue = found
            self._catalogues[language] = catalogue

    def get(self, key: str, language: str, **values: str) -> str:
        """The text with its values filled in; "" if there is none."""
        text = self._catalogues[language].gettext(key)
        return "" if text == key else text.format(**values)


_errors = Texts(_KERNEL)


def use(folder: Path) -> None:
    """Adds a service's texts for its errors, if it has any."""
    global _errors
    _errors = Texts(_KERNEL, folder) if folder.is_dir() else Texts(_KERNEL)


def of_error(reason: str) -> str:
    """What a guest may read about an error, in the language of this call; "" for an error that no guest causes."""
    return _errors.get(reason, current())

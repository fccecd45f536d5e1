"""The language that students read: which one, its gettext catalogues, and sentences that were stored in English.

English stands in the code, in docstrings of checks and in stored results; a translation is looked up when something is shown,
so no verdict, result or grade depends on a language. `autograder/locale/<code>.po` has the framework's texts, `<code>.po` in
the folder of a suite or of a release the texts of its checks; `python -m autograder.authoring.catalogues` keeps them up to date.

Texts that are shown where they are written go through `_`, with named fields. Findings, refusals and remarks are put together
in the judge, which knows no language: the catalogues have their templates with numbered fields (context `SAID`), the suite's
what its public checks say of a value, and `said` finds the one that a sentence was made from. In what the submission said no
sentence of a suite is looked for: "The size of a must match the size of b" is torch's, and stays as it is.

Not covered: what instructors read (class page, most commands) and handouts. These stay English.
"""

from __future__ import annotations

import contextlib
import functools
import gettext
import io
import os
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from autograder.errors import AutograderError

__all__ = ["ENGLISH", "N_", "Language", "LanguageError", "Template", "_", "chosen", "load", "names", "ngettext", "said"]
__all__ += ["spoken", "use"]

LOCALE = Path(__file__).parent / "locale"
SAID = "said"
"""Context (msgctxt) of sentences that are put together in the judge."""
FIELD = re.compile(r"\{(\d+)\}")
WIDE = "[\u3000-\u303f\u4e00-\u9fff\uff00-\uff60]"
GAP = re.compile(f"(?<={WIDE}) (?=\0{WIDE})|(?<={WIDE}\0) (?=\0?{WIDE})")
"""A space at the edge of a field, between Chinese characters or marks."""
RAISED = "Your code raised "
"""What follows is the submission's word."""
VARIABLES = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
"""Where the environment names languages, as gettext reads it: the first that is set counts."""
SAME = {"zh_Hant": "zh_TW", "zh_Hant_TW": "zh_TW", "zh_HK": "zh_TW", "zh_MO": "zh_TW"}
"""Languages that are read by who reads another one."""
DEEPEST = 6
"""Sentences in sentences; ours go three deep, a submission's text could pretend to go deeper."""


class LanguageError(AutograderError):
    """There is no such language, or its catalogue cannot be read."""


@dataclass(frozen=True)
class Template:
    """One sentence with numbered fields, and its translation. One that begins with a space ends other sentences."""

    parts: tuple[str, ...]
    translation: str
    suite: bool = False
    """Whether a suite's check says it, and not the framework."""

    @classmethod
    def of(cls, english: str, translation: str, *, suite: bool = False) -> Template:
        """Numbers of fields count up from 0 in `english`."""
        return cls(tuple(FIELD.split(english)[::2]), translation, suite)

    @property
    def tail(self) -> bool:
        return self.parts[0].startswith(" ")

    @property
    def place(self) -> tuple[int, bool, int]:
        """Where to try it: what ends sentences; the framework's that begin with text; sentences; labels in sentences.

        Of these the one with the most fixed text first: the surer it is that a sentence was made from it.
        """
        rank = 0 if self.tail else 1 if self.parts[0] and not self.suite else 2 if self.parts[-1].endswith(".") else 3
        return rank, self.suite, -sum(map(len, self.parts))

    def filled(self, values: list[str]) -> str:
        """The translation with these values. A space around a field is one between scripts: not where both sides are wide."""
        text = FIELD.sub(lambda match: f"\0{values[int(match[1])]}\0", self.translation)
        return GAP.sub("", text).replace("\0", "")

    def fit(self, text: str) -> list[str] | None:
        """What stands before it (nothing, except for a tail) and in its fields, or `None`. Linear in the text's length."""
        first, *others = self.parts
        start = text.rfind(first) if self.tail else 0
        if start < 0 or not text.startswith(first, start):
            return None
        found, at = [text[:start]], start + len(first)
        for number, part in enumerate(others, 1):
            last = number == len(others)
            end = (len(text) - len(part) if text.endswith(part) else -1) if last else text.find(part, at)
            if end < at:
                return None
            found.append(text[at:end])
            at = end + len(part)
        return found if at == len(text) else None


@dataclass(frozen=True)
class Language:
    """A language with its catalogues. `templates` are in the order in which they are tried."""

    code: str = "en"
    catalogue: gettext.NullTranslations = field(default_factory=gettext.NullTranslations)
    templates: tuple[Template, ...] = ()

    @property
    def tag(self) -> str:
        """As HTML's `lang` wants it."""
        return self.code.replace("_", "-")

    def said(self, text: str, *, quoted: bool = False, depth: int = 0) -> str:
        """A sentence that was put together in English, or `text` where no template fits. What was filled in stays.

        Of what is `quoted` from a submission only the framework's sentences are translated.
        """
        if not text or not self.templates:
            return text
        quoted = quoted or RAISED in text
        plain = text.rstrip(",")
        exact = self.catalogue.pgettext(SAID, plain)
        if exact != plain:
            return exact
        if depth >= DEEPEST:
            return text
        for template in self.templates:
            if (
                not (quoted and template.suite)
                and (found := template.fit(text if template.tail else plain)) is not None
            ):
                before, *values = found
                said = [self.said(each, quoted=quoted or template.tail, depth=depth + 1) for each in values]
                return self.said(before, quoted=quoted, depth=depth + 1) + template.filled(said)
        return text


ENGLISH = Language()
_spoken: ContextVar[Language] = ContextVar("language", default=ENGLISH)


def spoken() -> Language:
    """The language in use: English, unless somebody chose another one."""
    return _spoken.get()


@contextlib.contextmanager
def use(language: Language) -> Iterator[None]:
    """Speak `language` meanwhile."""
    before = _spoken.set(language)
    try:
        yield
    finally:
        _spoken.reset(before)


def _(text: str) -> str:
    """`text` in the language in use. Also for a check's sentence, a hint or a title, whose msgid is not written here."""
    return spoken().catalogue.gettext(text) if text else text


def ngettext(one: str, many: str, number: int) -> str:
    """The form that the language in use has for `number`."""
    return spoken().catalogue.ngettext(one, many, number)


def said(text: str, *, quoted: bool = False) -> str:
    """`Language.said` of the language in use."""
    return spoken().said(text, quoted=quoted)


def N_(text: str) -> str:  # noqa: N802  # gettext's own name
    """Mark `text` for the catalogue; it is translated where it is shown."""
    return text


def names() -> tuple[str, ...]:
    """All languages there are."""
    return "en", *sorted(path.stem for path in LOCALE.glob("*.po"))


def chosen(asked: str | None = None) -> str:
    """The language that was `asked` for, else the environment's if we have it, else English. Raises `LanguageError`."""
    if asked:
        if found := _known(asked):
            return found
        raise LanguageError(f"There is no language {asked!r} here. There are: {', '.join(names())}.")
    wished = next(filter(None, map(os.environ.get, VARIABLES)), "")
    return next((found for each in wished.split(":") if (found := _known(each))), "en")


def _known(wish: str) -> str | None:
    """The language that `wish`, as in zh_TW.UTF-8 or zh-Hant, stands for."""
    plain = re.split(r"[.@]", wish)[0].replace("-", "_")
    plain = SAME.get(plain, plain)
    return next((name for name in names() if name in (plain, plain.partition("_")[0])), None)


def load(code: str, folder: Path | None = None) -> Language:
    """The language `code`, with the texts of the suite or release in `folder`. Raises `LanguageError`."""
    if code == "en":
        return ENGLISH
    files = [LOCALE / f"{code}.po", *([folder / f"{code}.po"] if folder else [])]
    read = [_read(path, path.stat().st_mtime_ns) for path in files if path.is_file()]
    if not read:
        raise LanguageError(f"There is no language {code!r} here. There are: {', '.join(names())}.")
    templates = [template for _catalogue, found in read for template in found]
    catalogue = _Chain([found for found, _templates in read])
    return Language(code, catalogue, tuple(sorted(templates, key=lambda each: each.place)))


class _Chain(gettext.NullTranslations):
    """Several catalogues, of which the last one that has a text counts."""

    def __init__(self, catalogues: list[gettext.NullTranslations]) -> None:
        super().__init__()
        self._catalogues = catalogues

    def gettext(self, message: str) -> str:
        found = (each.gettext(message) for each in reversed(self._catalogues))
        return next((text for text in found if text != message), message)

    def pgettext(self, context: str, message: str) -> str:
        found = (each.pgettext(context, message) for each in reversed(self._catalogues))
        return next((text for text in found if text != message), message)

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return self._catalogues[0].ngettext(msgid1, msgid2, n)


@functools.lru_cache(maxsize=32)
def _read(path: Path, _changed: int) -> tuple[gettext.GNUTranslations, tuple[Template, ...]]:
    """A .po file, compiled in memory: no binary lies beside it that could be older."""
    from babel.messages.mofile import write_mo
    from babel.messages.pofile import read_po

    compiled = io.BytesIO()
    try:
        with path.open("rb") as stream:
            catalogue = read_po(stream, locale=path.stem, abort_invalid=True)
        write_mo(compiled, catalogue)
        compiled.seek(0)
        made = gettext.GNUTranslations(compiled)
    except Exception as error:  # a student can have changed it to anything
        raise LanguageError(
            f"{path} is not a catalogue: {str(error)[:200]}. Fetch the assignment again, or go on in English: --lang en"
        ) from None
    templates = (
        Template.of(str(message.id), message.string, suite=path.parent != LOCALE)
        for message in catalogue
        if message.context == SAID and isinstance(message.string, str) and message.string and not message.fuzzy
    )
    return made, tuple(each for each in templates if len(each.parts) > 1 or each.tail)

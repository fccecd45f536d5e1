"""Catalogues of translations: what belongs into them, and what is missing in them.

    autograder/locale/<code>.po          the framework: pages, commands, sentences of the judge that students read
    tests/grading/<name>/<code>.po       a suite: titles in `spec.py`, sentence and hint of every check, what public checks say
    assignments/<name>/<code>.po         of these, titles and public checks; written by `autograder build`

`python -m autograder.authoring.catalogues` brings every catalogue up to date, keeps its translations, drops what is not used
any more and lists what is left to translate; with `--check` it writes nothing. Exit status 1 if anything is left. For a new
language, put an empty `<code>.po` into `autograder/locale/`; a suite that has none yet gets one.

Texts marked with `_`, `ngettext` and `N_`, and those of templates, are found by Babel. What the judge puts together is found in
the functions named in `SAID_IN` and in the public checks (`autograder.authoring.sentences`).
"""

from __future__ import annotations

import ast
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babel.messages.catalog import Catalog, Message
from babel.messages.extract import extract_from_file
from babel.messages.pofile import read_po, write_po

from autograder import suite
from autograder.authoring import sentences
from autograder.checks import sentence_and_hint
from autograder.language import LOCALE, SAID
from autograder.spec import Assignment

__all__ = ["Text", "complaints", "of_framework", "of_suite", "places", "read", "released", "update"]

PACKAGE = Path(__file__).parents[1]
KEYWORDS = {"_": None, "N_": None, "gettext": None, "ngettext": (1, 2)}
TEMPLATES = ("base.html", "parts.html", "student.html", "task.html")
"""Not the instructor's."""
SAID_IN: dict[str, tuple[str, ...]] = {
    "judging/blame.py": ("_overload", "_kill"),
    "checks.py": ("show", "expect_type", "expect_equal", "expect_close", "expect_raises"),
    "judging/exchange.py": ("_receive",),
    "finding.py": ("",),
    "sandboxing/isolation.py": ("end_reason", "_describe"),
    "manifest.py": ("load",),
    "students/command.py": ("",),
    "students/pair.py": ("read", "take"),
    "judging/plugin.py": ("_require", "_verdict", "_logged", "_describe", "where"),
    "judging/remote.py": (
        "__repr__",
        "each",
        "_made",
        "describe",
        "_ready",
        "_check_left",
        "call",
        "_exchange",
        "invoke",
    ),
    "judging/scripted.py": ("wait", "next", "_raise", "_read"),
    "students/selfcheck.py": ("locate", "run", "_spawn"),
    "judging/served.py": ("fault", "take"),
    "submission.py": ("read_notebook", "read_script", "read_bytes", "_select", "__str__"),
    "../gpu_env/models.py": ("find", "_missing"),
    "../gpu_env/vllm_engine.py": ("obstacle",),
}
"""Where the judge puts texts together that students read: modules and functions, "" for constants of the module."""
HEAD = """msgid ""
msgstr ""
"Project-Id-Version: inference-autograder\\n"
"Language: {code}\\n"
"Plural-Forms: {plural}\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"
"""
NAMED = re.compile(r"%\(\w+\)[a-z]|%[a-z%]|\{\w*[^{}]*\}")


@dataclass(frozen=True)
class Text:
    """One entry: `said` is of a sentence that was put together elsewhere."""

    file: str
    id: str | tuple[str, str]
    said: bool = False
    note: str = ""
    hidden: bool = False


def places() -> Iterator[tuple[Path, str, list[Text]]]:
    """Every catalogue there must be: its file, its language, and its texts."""
    framework = list(of_framework())
    for code in sorted(path.stem for path in LOCALE.glob("*.po")):
        yield LOCALE / f"{code}.po", code, framework
        for name in suite.names():
            folder = suite.folder(name)
            yield folder / f"{code}.po", code, list(of_suite(suite.load_assignment(name), folder))


def of_framework() -> Iterator[Text]:
    """Texts of pages and commands, then what the judge puts together."""
    options = {"trimmed": "true", "silent": "false"}
    for name in TEMPLATES:
        yield from _marked("jinja2.ext:babel_extract", PACKAGE / "pages" / "templates" / name, options)
    for path in sorted(PACKAGE.rglob("*.py")):
        yield from _marked("python", path)
    for name, functions in SAID_IN.items():
        path = (PACKAGE / name).resolve()
        shown = path.relative_to(PACKAGE.parent).as_posix()
        said = sentences.of_functions(path, frozenset(functions), KEYWORDS.keys())
        yield from (Text(shown, text, said=True) for text in said)


def of_suite(assignment: Assignment, folder: Path) -> Iterator[Text]:
    """Titles, then sentence and hint of every check, in the order of the files, then what public checks say of a value."""
    yield Text("spec.py", assignment.title)
    yield from (Text("spec.py", task.title) for task in assignment)
    checks = {check.name: check for check in assignment.checks}
    for name in ("test_public.py", "test_hidden.py"):
        for node in ast.parse((folder / name).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name in checks:
                hidden = checks[node.name].hidden
                for text in filter(None, sentence_and_hint(ast.get_docstring(node) or "")):
                    yield Text(name, text, note=node.name, hidden=hidden)
    yield from (Text("test_public.py", text, said=True) for text in sentences.of_checks(folder / "test_public.py"))


def released(assignment: Assignment, folder: Path) -> dict[str, str]:
    """The catalogues of a release, by file name: of the suite's those texts that the release shows in English."""
    texts = [text for text in of_suite(assignment, folder) if not text.hidden]
    return {path.name: _written(_filled(texts, path.stem, read(path))) for path in sorted(folder.glob("*.po"))}


def update(path: Path, code: str, texts: list[Text]) -> bool:
    """Bring a catalogue up to date; whether anything in it changed."""
    before = path.read_bytes() if path.is_file() else b""
    made = _written(_filled(texts, code, read(path) if before else None)).encode()
    if made != before:
        path.write_bytes(made)
    return made != before


def complaints(path: Path, code: str, texts: list[Text]) -> list[str]:
    """What is wrong with a catalogue, one line for each: nothing missing, empty, doubtful, unused; fields as in English."""
    if not path.is_file():
        return [f"{path}: missing, with {len(texts)} texts"]
    catalogue = read(path)
    wanted = {_key(text): text for text in texts}
    known = {(message.context, _english(message)): message for message in catalogue if message.id}
    said = [f"{text.id!r} is not in it" for key, text in wanted.items() if key not in known]
    said += [f"{key[1]!r} is not used" for key in known if key not in wanted]
    said += [f"{message.id!r} is not used" for message in catalogue.obsolete.values()]
    for message in known.values():
        given = [message.string] if isinstance(message.string, str) else list(message.string or ())
        if not all(given):
            said.append(f"{message.id!r} is not translated")
        elif message.fuzzy:
            said.append(f"{message.id!r} is marked as doubtful (fuzzy)")
        else:
            asked = _fields(message.id if isinstance(message.id, str) else message.id[-1])
            said += [
                f"{message.id!r} has the fields {asked}, its translation others"
                for each in given
                if _fields(each) != asked
            ]
    return [f"{path}: {each}" for each in said]


def _fields(text: str) -> list[str]:
    return sorted(NAMED.findall(text))


def _english(message: Message) -> str:
    return message.id if isinstance(message.id, str) else str(message.id[0])


def _key(text: Text) -> tuple[str | None, str]:
    return (SAID if text.said else None), text.id if isinstance(text.id, str) else text.id[0]


def _marked(method: str, path: Path, options: dict[str, Any] | None = None) -> Iterator[Text]:
    for _line, text, _comments, _context in extract_from_file(method, path, KEYWORDS, (), options):
        yield Text(path.relative_to(PACKAGE.parent).as_posix(), text)  # type: ignore[arg-type]


def read(path: Path) -> Catalog:
    """A catalogue as it is; its language is the name of its file."""
    with path.open("rb") as stream:
        return read_po(stream, locale=path.stem, abort_invalid=True)


def _filled(texts: list[Text], code: str, before: Catalog | None) -> Catalog:
    """A catalogue of these texts, with the translations of `before`."""
    old = before if before is not None else Catalog(locale=code, header_comment=f"# {code}")
    made = Catalog(locale=code, header_comment=old.header_comment)
    for text in texts:
        context = SAID if text.said else None
        notes = [text.note] if text.note else []
        message = made.add(text.id, locations=[(text.file, 0)], auto_comments=notes, context=context)
        known = old.get(text.id, context)
        if known is not None and known.string:
            message.string = known.string
            message.flags |= known.flags & {"fuzzy"}
    return made


def _written(catalogue: Catalog) -> str:
    """As a file: the head has nothing that changes by itself."""
    stream = io.BytesIO()
    write_po(stream, catalogue, width=120, include_lineno=False, omit_header=True)
    head = HEAD.format(code=catalogue.locale_identifier, plural=catalogue.plural_forms)
    return f"{catalogue.header_comment}\n{head}\n{stream.getvalue().decode()}"


def main(arguments: list[str]) -> int:
    """Update every catalogue, or with `--check` none, and tell what is left to do."""
    left = 0
    for path, code, texts in places():
        if "--check" not in arguments and update(path, code, texts):
            print(f"wrote {path}")
        found = complaints(path, code, texts)
        left += len(found)
        print(*found, sep="\n", end="\n" if found else "")
    print(f"{left} texts to look at" if left else "all catalogues are complete")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

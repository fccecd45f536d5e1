"""Pages in a real browser: accessible, readable on a phone, light and dark, and running nothing that is not ours."""

from __future__ import annotations

import contextlib
import gettext
import itertools
import json
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import platformdirs
import pytest
from websockets.sync.client import connect

from autograder import grade, language, suite
from autograder.authoring import corpus
from autograder.courses.feedback_export import cells
from autograder.finding import NOT_IMPLEMENTED, Finding, Outcome
from autograder.language import Language
from autograder.pages import html_pages
from autograder.pages.class_page import Submitted, class_page
from autograder.pages.student_page import Book, Cell, student_page
from autograder.results import Result
from autograder.spec import Assignment, Check
from autograder.suite import load_assignment

ASSIGNMENT: Assignment = load_assignment("kv_cache")
SPEED = next(check for check in ASSIGNMENT.checks if check.performance)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = "4.14.1"
ALIVE_S = 60
PHONE, DESKTOP = 390, 1280
MARK = "hostile-was-here"
SCRIPT = f"document.documentElement.setAttribute('data-{MARK}', '1')"
MARKUP = (
    f'<script>{SCRIPT}</script><img src=x onerror="{SCRIPT}"><svg onload="{SCRIPT}"></svg></pre></td></style>'
    f'<iframe srcdoc="<script>parent.{SCRIPT}</script>"></iframe><details open ontoggle="{SCRIPT}"></details>'
    '<link rel=stylesheet href=//example.org/x><meta http-equiv=refresh content="60;url=//example.org">{{ 7 * 7 }}'
    "\N{RIGHT-TO-LEFT OVERRIDE}\0\x1b[31m"
)


# ------------------------------------------------------------------------------------------------ the pages


def finding(check: Check, outcome: Outcome, **fields: Any) -> Finding:
    """What a judge would have noted, with texts of every kind."""
    text = {
        "message": "" if outcome is Outcome.PASSED else "The bytes of one token: wrong value.",
        "hint": "A token stores one key and one value per KV head." if outcome is Outcome.FAILED else "",
        "value": "524_288" if outcome is Outcome.FAILED else None,
        "expected": "131_072" if outcome is Outcome.FAILED else None,
    }
    known: dict[str, Any] = {
        "check": check.name,
        "task": check.task,
        "outcome": outcome,
        "hidden": check.hidden,
        "sentence": f"What {check.name} looks at is as the handout says, for every kind of attention.",
    }
    return Finding.model_validate(known | text | fields)


def speed(outcome: Outcome, ratio: float, **fields: Any) -> Finding:
    """The finding of the one performance check."""
    measured = {
        "speedup": ratio, "speedup_low": ratio * 0.93, "speedup_high": ratio * 1.08, "speedup_asked": 0.25, "pairs": 20,
        "noise_percent": 1.234, "submission_us_per_call": 812.3, "reference_us_per_call": 1523.9,
    }  # fmt: skip
    return finding(SPEED, outcome, measurements=measured, **fields)


def result(findings: list[Finding], **fields: Any) -> Result:
    """A stored result with these findings."""
    known: dict[str, Any] = {
        "assignment": ASSIGNMENT.name, "spec": ASSIGNMENT, "student": "ada", "source": "kv_cache.ipynb",
        "submission_hash": "a" * 64,
        "submission_copy": "c" * 64, "suite_hash": "b" * 64, "release": "d50903a38012d5b5", "framework": "0.1.0",
        "tier": "cpu", "seed": 8765432187654321, "seconds": 1.2, "withheld": [], "remarks": [], "findings": findings,
        "isolation": {"name": "namespaces", "level": 3, "walls": [], "refused": []},
        "machine": {
            "cpu": "AMD EPYC", "cores": 2, "memory_bytes": 8 << 30, "python": "CPython 3.11.2",
            "packages": {"torch": "2.13.0+cpu"},
        },
        "models": {"SmolLM2-135M-Instruct": "e" * 64},
    }  # fmt: skip
    return Result.model_validate(known | fields)


def judged(*special: Finding, rest: Outcome = Outcome.PASSED, **fields: Any) -> list[Finding]:
    """One finding for each check: `special` ones, all others with the outcome `rest`."""
    named = {each.check: each for each in special}
    return [named.get(check.name) or finding(check, rest, **fields) for check in ASSIGNMENT.checks]


def html_of(findings: list[Finding], book: Book | None = None, source: str | None = None, **fields: Any) -> str:
    """The page of these findings, with a notebook."""
    answers = dict(corpus.reference(ASSIGNMENT.name).answers)
    if source is not None:
        answers = dict.fromkeys(answers, source)
    notebook = corpus.notebook(ASSIGNMENT.name, answers)
    for cell in notebook.cells:
        if source is not None and "task" in cell.metadata:
            cell.metadata.nbgrader["comment"] = source
    return html_pages.student_html(student_page(result(findings, **fields), tuple(cells(notebook)), book))


def half() -> list[Finding]:
    """Every other check failed, the one for speed in part."""
    pairs = zip(ASSIGNMENT.checks, itertools.cycle((Outcome.PASSED, Outcome.FAILED)), strict=False)
    return judged(
        *(finding(*pair) for pair in pairs if not pair[0].performance), speed(Outcome.FAILED, 0.17, credit=0.58)
    )


def full_marks() -> str:
    return html_of(judged(speed(Outcome.PASSED, 0.81)), Book(40.0))


def half_marks() -> str:
    return html_of(
        half(),
        Book(17.5, late_penalty=2.5, tasks={"BlockPool": 8.0}),
        remarks=["double is only defined in the cell after task 2."],
    )


def all_failed() -> str:
    return html_of(judged(rest=Outcome.FAILED, message=NOT_IMPLEMENTED, value=None, expected=None, hint=""), Book(0.0))


def hostile() -> str:
    texts = dict.fromkeys(("message", "value", "expected", "printed"), MARKUP)
    return html_of(judged(rest=Outcome.FAILED, **texts), Book(0.0), MARKUP, student=MARKUP, remarks=[MARKUP])


def withheld() -> str:
    first, second, third, *_ = ASSIGNMENT.checks
    special = (
        finding(first, Outcome.BROKEN, message="RuntimeError: ours"),
        finding(second, Outcome.REVIEW),
        finding(third, Outcome.SKIPPED),
    )
    return html_of(judged(*special), withheld=["The notebook is of an older release."])


def inconclusive() -> str:
    return html_of(judged(speed(Outcome.INCONCLUSIVE, 0.26)))


STUDENT_PAGES = {
    each.__name__.replace("_", " "): each
    for each in (full_marks, half_marks, all_failed, hostile, withheld, inconclusive)
}


def class_of(students: int) -> list[Submitted]:
    """A class: every outcome comes up, somebody's name is hostile, one was not graded."""
    submitted = []
    outcomes = [Outcome.PASSED] * 5 + [Outcome.FAILED] * 2 + [Outcome.BLOCKED]
    special = {3: Outcome.REVIEW, 5: Outcome.INCONCLUSIVE, 8: Outcome.BROKEN, 13: Outcome.SKIPPED}
    for number in range(students):
        findings = [
            finding(check, outcomes[(number * 7 + place * (number % 5)) % len(outcomes)], message=f"No {number % 4}.")
            for place, check in enumerate(ASSIGNMENT.checks)
            if not check.performance
        ]
        if number in special:
            findings[0] = finding(ASSIGNMENT.checks[0], special[number])
        ratio = 0.1 + 0.02 * (number % 37)
        findings.append(speed(Outcome.PASSED, ratio) if ratio >= 0.25 else speed(Outcome.FAILED, ratio, credit=0.4))
        student = MARKUP if number == 1 else f"student {number:04d}"
        made = result(findings, student=student, seconds=1 + number / 100)
        file, page = f"results/kv_cache/{student}/0.json", f"students/{number}.html"
        submitted.append(Submitted(student, made, "", float(number % 41) if number % 2 else None, file, page))
    return [*submitted, Submitted("'; rm -rf /", None, f"There is no kv_cache.ipynb. {MARKUP}")]


def class_html(students: int = 30) -> str:
    return html_pages.class_html(class_page(ASSIGNMENT, class_of(students)), "grades.csv")


def in_chinese(make: Callable[[], str]) -> Callable[[], str]:
    """The same page in Traditional Chinese."""

    def made() -> str:
        with language.use(language.load("zh_TW", suite.folder(ASSIGNMENT.name))):
            return make()

    return made


CHINESE_PAGES = {f"{name}, zh_TW": in_chinese(make) for name, make in STUDENT_PAGES.items()}
PAGES = STUDENT_PAGES | CHINESE_PAGES | {"class": class_html}


# ------------------------------------------------------------------------------------------------ without a browser


def test_a_page_is_one_file_that_allows_nothing_but_its_own_style() -> None:
    """No page refers to anything outside, has an inline style or a handler; its policy names one style sheet by hash."""
    for name, make in STUDENT_PAGES.items():
        if name == "hostile":
            continue
        page = make()
        assert "default-src 'none'; style-src 'sha256-" in page
        assert "unsafe" not in page
        assert not re.findall(r"<(?:script|link|img|iframe|object|base|form)\b", page)
        assert not re.findall(r"<[^>]*\s(?:style|on\w+)=", page)
        assert set(re.findall(r'(?:href|src)="([^"#]*)', page)) <= {""}
        assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page)


def test_every_link_of_a_page_leads_somewhere_and_no_id_stands_twice() -> None:
    """Links to the handout and references of ARIA have their targets."""
    for make in PAGES.values():
        page = make()
        ids = re.findall(r'\sid="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        assert {*re.findall(r'href="#([^"]+)"', page), *re.findall(r'aria-labelledby="([^"]+)"', page)} <= set(ids)


def test_hidden_checks_show_author_text_and_no_seed() -> None:
    """What a hidden check tried, got and expected is on no page, and neither is the seed."""
    secret = {"message": "secret-1", "value": "secret-2", "expected": "secret-3", "printed": "secret-4"}
    for outcome in Outcome:
        special = [finding(check, outcome, **secret) for check in ASSIGNMENT.checks if check.hidden]
        page = html_of(judged(*special))
        assert "secret-" not in page
        assert "8765432187654321" not in page
        assert special[0].sentence in page


def test_the_first_failing_check_of_a_task_is_what_comes_next() -> None:
    """It stands open under its task with value, expected value, hint and the way to the handout; the others are folded."""
    page = half_marks()
    following = page[page.index('id="next"') :]
    task = ASSIGNMENT.tasks[0]
    card = following[following.index(f'id="next-{task.name}"') : following.index("<details")]
    first = next(each for each in half() if each.task == task.name and each.outcome is Outcome.FAILED)
    for text in (first.sentence, "524_288", "131_072", first.hint, "Task 1: bytes per token"):
        assert text in card


def test_points_are_those_of_the_gradebook_and_say_why() -> None:
    """A late penalty and points set by hand are told beside what the checks gave."""
    page = half_marks()
    most = sum(check.points for check in ASSIGNMENT.checks)
    assert f'class="total">17.5 <small>of {most} points' in page
    assert "2.5 points were taken off because it was handed in late." in page
    assert "A person set these points; the checks gave" in page
    assert '<p class="total open">No grade yet</p>' in withheld()


def test_partial_credit_and_the_interval_are_told_in_words_too() -> None:
    """Nobody has to see the plot."""
    page = half_marks()
    assert "Not fast enough: 0.58 of 1 points. Points begin at 0.1 and grow up to 0.25" in page
    assert "Your code is 0.170 times as fast as the reference, between 0.158 and 0.184; 0.25 is asked for." in page
    assert "noise of the machine 1.2 %" in page


@pytest.mark.parametrize("text", ["'" * 2000, "\n" * 2000, "&<" * 1000, "`'`" * 700])
def test_no_submission_makes_a_page_too_large(text: str) -> None:
    """Whatever it returns, prints and contains, the page stays below a megabyte and keeps the verdicts."""
    texts = dict.fromkeys(("message", "value", "expected", "printed"), text * 20)
    findings = judged(rest=Outcome.FAILED, **texts)
    page = html_of(findings, Book(0.0), text * 500)
    assert len(page.encode()) <= html_pages.MOST_BYTES
    assert page.count("✗ FAILED") >= len(ASSIGNMENT.checks)


def test_no_number_of_cells_makes_a_page_too_large() -> None:
    """Who adds ten thousand cells is shown a hundred, and told so; the code of the tasks is there."""
    many = [Cell("own", "1")] * 10_000 + [Cell("task", "def kv_bytes_per_token(): ...", "kv_bytes_per_token")]
    page = html_pages.student_html(student_page(result(half()), many))
    assert len(page.encode()) <= html_pages.MOST_BYTES
    assert "9900 more cells that are not graded are left out here." in page
    assert "def kv_bytes_per_token(): ..." in page


def test_names_between_backticks_are_code_and_nothing_else_is() -> None:
    """Markup between backticks, which may be a submission's, stays text."""
    one = finding(ASSIGNMENT.checks[0], Outcome.FAILED, sentence="Count `n_kv_heads` & no <b>.", message=f"`{MARKUP}`")
    page = html_of(judged(one))
    assert "Count <code>n_kv_heads</code> &amp; no &lt;b&gt;." in page
    assert "<code>&lt;script&gt;" in page
    assert "<script>document" not in page


def test_figures_beside_a_verdict_are_shown_where_a_check_passed_too() -> None:
    """What a check measured without resting on it stands under its sentence."""
    check = ASSIGNMENT.checks[0]
    page = html_of(judged(finding(check, Outcome.PASSED, measurements={"bytes_read": 4096.0})))
    passed = page[page.index('id="passed"') :]
    assert "bytes_read 4,096" in passed


def test_equal_results_give_equal_pages() -> None:
    """A page is a function of what it shows: made again, not one byte differs."""
    assert half_marks() == half_marks()


# ------------------------------------------------------------------------------------------------ the class


def test_the_class_page_allows_one_script_and_no_other() -> None:
    """Its policy names style sheet and script by hash; names and texts of submissions are no markup."""
    page = class_html()
    assert re.search(r"default-src 'none'; style-src 'sha256-[^']+'; script-src 'sha256-[^']+'; base-uri", page)
    assert page.count("<script>") == 1
    assert not re.findall(r"<[^>]*\s(?:style|on\w+)=", re.sub(r"<script>.*?</script>", "", page, flags=re.S))
    assert "<img" not in page


def test_figures_are_those_of_the_findings() -> None:
    """Grades, means and pass rates are counted here a second time, from the findings alone."""
    submitted = class_of(30)
    page = class_page(ASSIGNMENT, submitted)
    by_student = {each.student: each.result for each in submitted if each.result}
    for row in page.rows:
        found = by_student.get(row.submitted.student)
        assert row.total == (
            grade.score(ASSIGNMENT, found.findings).points if found and row.state == "graded" else None
        )
    assert page.grades == tuple(sorted(row.total for row in page.rows if row.total is not None))
    assert page.summary[0] <= page.summary[1] <= page.summary[2] <= page.summary[4] <= page.summary[5]
    for task in page.tasks:
        for figures in task.checks:
            found_ones = [
                each for found in by_student.values() for each in found.findings if each.check == figures.check.name
            ]
            passed = sum(each.outcome is Outcome.PASSED for each in found_ones)
            judged_ones = sum(each.outcome in (Outcome.PASSED, Outcome.FAILED, Outcome.BLOCKED) for each in found_ones)
            assert figures.passed == passed / judged_ones
            assert figures.open == len(found_ones) - judged_ones
            assert [count for _, count in figures.texts] == sorted((count for _, count in figures.texts), reverse=True)
    assert len(page.speeds[0].ratios) == 30


def test_who_has_no_grade_is_told_with_a_command() -> None:
    """A machine is asked again, a person is shown what to look at, and no name is more than a word for the shell."""
    page = class_page(ASSIGNMENT, class_of(30))
    commands = {each.student: (each.state, each.command) for each in page.open}
    again = "autograder grade kv_cache --student"
    assert commands == {
        "student 0003": ("REVIEW", "autograder replay 'results/kv_cache/student 0003/0.json'"),
        "student 0005": ("INCONCLUSIVE", f"{again} 'student 0005'"),
        "student 0008": ("BROKEN", f"{again} 'student 0008'"),
        "student 0013": ("SKIPPED", f"{again} 'student 0013'"),
        "'; rm -rf /": ("not graded", again + " ''\"'\"'; rm -rf /'"),
    }
    assert {each.student for each in page.open} == {row.submitted.student for row in page.rows if row.total is None}


def test_a_class_of_nobody_graded_has_a_page() -> None:
    """No grade, no speed, no machine: nothing is divided by zero."""
    page = class_page(ASSIGNMENT, [Submitted("ada", None, "No result is stored.")])
    assert page.summary == ()
    assert "No result is stored." in html_pages.class_html(page, "grades.csv")


def test_the_class_page_grows_by_the_lines_of_its_table_only() -> None:
    """Well below a kilobyte for each student: a thousand make half a megabyte."""
    small, large = (len(class_html(students)) for students in (30, 230))
    assert (large - small) / 200 < 700


# ------------------------------------------------------------------------------------------------ languages


class Pseudo(gettext.NullTranslations):
    """Every text that goes through gettext stands in brackets."""

    def gettext(self, message: str) -> str:
        return f"⟦{message}⟧"

    def ngettext(self, msgid1: str, msgid2: str, n: int) -> str:
        return f"⟦{msgid1 if n == 1 else msgid2}⟧"


class Visible(HTMLParser):
    """What people see or hear of a page, without code, handout and what a student or the judge filled in."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.open: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.found += [named[name] or "" for name in ("aria-label", "title", "alt") if name in named]
        if tag not in ("meta", "progress", "br", "link", "use", "path", "rect"):
            self.open.append(
                (tag, tag in ("code", "pre", "style", "script") or (named.get("lang") == "en" and tag != "html"))
            )

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not any(skipped for _, skipped in self.open) and data.strip():
            self.found.append(data.strip())


def bare(page: str) -> list[str]:
    """Visible texts with letters that did not come from gettext."""
    seen = Visible()
    seen.feed(page)
    left = []
    for text in seen.found:
        rest = text
        while rest != (rest := re.sub(r"⟦[^⟦⟧]*⟧", "", rest)):
            pass
        if re.search(r"[^\W\d_]{2}", rest):
            left.append(rest)
    return left


FILLED_IN = re.compile(
    r"autograder|namespaces|RuntimeError: ours|The bytes of one token: wrong value\.|524_288|131_072"
    r"|CPython 3\.11\.2|torch 2\.13\.0\+cpu|8\.0 GiB|double is only defined in the cell after task 2\.|Not implemented yet\."
    r"|The notebook is of an older release\.|[\d.]+ (µs|ms|s)\b"
)
"""What the judge found, in the pages of `test_pages`: names, values and its own sentences."""


@pytest.mark.parametrize("name", [name for name in STUDENT_PAGES if name != "hostile"])
def test_every_text_of_a_page_comes_from_a_catalogue(name: str) -> None:
    """In a language that puts everything into brackets, nothing of ours stands outside of them."""
    with language.use(Language("en-x-pseudo", Pseudo())):
        page = STUDENT_PAGES[name]()
    sections = {"The KV cache"}  # headings of the handout name their sections
    left = [text for text in bare(page) if FILLED_IN.sub("", text).strip(" ;,.()")]
    headings = {text for text in re.findall(r'<h3 lang="en">([^<]*)</h3>', page)} | sections
    assert [text for text in left if text.replace("'", "&#39;") not in headings] == []


def test_a_bare_text_would_be_found() -> None:
    """The scan sees texts, labels and what stands beside a bracket; it passes over code and English parts."""
    page = (
        '<p>Hello ⟦there ⟦you⟧⟧</p><p aria-label="Label">⟦x⟧</p><code>code</code><div lang="en">text</div><p>⟦y⟧ 3</p>'
    )
    assert bare(page) == ["Hello ", "Label"]


def test_a_page_says_its_language() -> None:
    """Its root and its parts in another language are labelled; the course's texts are translated on it."""
    with language.use(language.load("zh_TW", suite.folder(ASSIGNMENT.name))):
        page = html_of(
            judged(sentence="A contiguous cache holds the tokens of all sequences, and nothing for no sequences.")
        )
    assert '<html lang="zh-TW">' in page
    assert '<div lang="en">' in page
    assert "目前成績" in page
    assert "Where you stand" not in page
    assert "A contiguous cache holds" not in page
    assert '<html lang="en">' in html_of(judged())


# ------------------------------------------------------------------------------------------------ a browser


class Browser:
    """Chromium, spoken to by its DevTools protocol."""

    def __init__(self, folder: Path) -> None:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        flags += [f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-port=0"]
        self.process = subprocess.Popen([str(CHROMIUM), *flags], stderr=subprocess.DEVNULL)
        listening = folder / "DevToolsActivePort"
        end = time.monotonic() + ALIVE_S
        while not (listening.exists() and len(listening.read_text().split()) == 2):
            assert self.process.poll() is None, "Chromium ended at once"
            assert time.monotonic() < end, "Chromium does not listen"
            time.sleep(0.05)
        port, path = listening.read_text().split()
        self.closing = contextlib.ExitStack()
        address = f"ws://127.0.0.1:{port}{path}"
        self.socket = self.closing.enter_context(connect(address, max_size=None, compression=None))
        self.numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", session=None, url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", session=None, targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Log", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, session: str | None = "", **parameters: Any) -> dict[str, Any]:
        """Give a command, and wait for its answer; what is told meanwhile is kept."""
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while (answer := self._read()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.socket.recv(timeout=ALIVE_S))
        if "method" in answer:
            self.events.append(answer)
        return answer

    def open(self, path: Path, width: int = DESKTOP, *, dark: bool = False) -> None:
        """Open a page in a window of this width."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width == PHONE
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._read()

    def run(self, script: str) -> Any:
        """The value of a script's expression, awaited."""
        made = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in made, made
        return made["result"].get("value")

    def said(self, method: str) -> list[dict[str, Any]]:
        """What events of this kind were about, since the page was opened."""
        return [event["params"] for event in self.events if event["method"] == method]

    def close(self) -> None:
        self.closing.close()
        self.process.terminate()
        self.process.wait(ALIVE_S)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One Chromium for all pages."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here to open the pages in")
    made = Browser(tmp_path_factory.mktemp("chromium"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """axe-core's source, fetched from the npm registry once."""
    kept = platformdirs.user_cache_path("inference-autograder", appauthor=False) / f"axe-core-{AXE}.tgz"
    if not kept.is_file():
        if shutil.which("npm") is None:
            pytest.skip(f"no npm here to fetch axe-core with, and no {kept}")
        folder = tmp_path_factory.mktemp("axe")
        command = ["npm", "pack", f"axe-core@{AXE}", "--silent", f"--pack-destination={folder}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=ALIVE_S, check=False)
        if done.returncode:
            pytest.skip(f"npm cannot fetch axe-core, and there is no {kept}: {done.stderr.strip()[-200:]}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        (folder / kept.name).rename(kept.with_suffix(".new"))
        kept.with_suffix(".new").rename(kept)
    with tarfile.open(kept) as archive:
        member = archive.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every kind of page, as a file; and one on which the hostile texts would work."""
    folder = tmp_path_factory.mktemp("pages")
    made = {name: make() for name, make in PAGES.items()}
    made["control"] = f"<!doctype html><html><body>{MARKUP}</body></html>"
    for name, text in made.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in made}


WITH_NOTEBOOK = ("half marks", "hostile", "half marks, zh_TW")
"""Pages whose notebook is looked at too: the handout in it is long, and the same on all of them."""
AXE_RUN = """(async () => {
    const found = await axe.run(document, {resultTypes: ['violations']});
    return found.violations.map(each => each.id + ': ' + each.nodes.map(node => node.html.slice(0, 200)).slice(0, 3).join(' | '));
})()"""


@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(browser: Browser, axe: str, files: dict[str, Path], name: str) -> None:
    """No violation of any of axe-core's rules, on a phone in dark colours and on a desktop in light ones."""
    for width, dark in ((PHONE, True), (DESKTOP, False)):
        browser.open(files[name], width, dark=dark)
        folded = "details" if name in WITH_NOTEBOOK else "details.print"
        browser.run(f"document.querySelectorAll('{folded}').forEach(each => {{ each.open = true }})")
        browser.run(axe + ";true")
        assert browser.run(AXE_RUN) == []


def test_axe_would_find_something(browser: Browser, axe: str, files: dict[str, Path]) -> None:
    """The control has no language, no title and no landmarks."""
    browser.open(files["control"])
    browser.run(axe + ";true")
    assert "html-has-lang" in str(browser.run(AXE_RUN))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone_and_asks_for_nothing(browser: Browser, files: dict[str, Path], name: str) -> None:
    """Nothing sticks out at the side, nothing is fetched, and the policy had nothing to refuse."""
    browser.open(files[name], PHONE)
    browser.run("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert browser.run("document.documentElement.scrollWidth") <= PHONE
    asked = {each["request"]["url"] for each in browser.said("Network.requestWillBeSent")}
    assert asked == {files[name].as_uri()}
    assert browser.said("Log.entryAdded") == []


@pytest.mark.parametrize("name", ["control", "hostile", "hostile, zh_TW", "class"])
def test_nothing_of_a_submission_runs(browser: Browser, files: dict[str, Path], name: str) -> None:
    """A hostile submission's page has no mark of its scripts; the control shows that they would leave one."""
    browser.open(files[name])
    browser.run("new Promise(done => setTimeout(done, 100))")
    assert browser.run(f"document.documentElement.hasAttribute('data-{MARK}')") == (name == "control")


def test_the_table_is_sorted_by_keyboard(browser: Browser, files: dict[str, Path]) -> None:
    """Enter on a column's name sorts, again turns it round; what has no value stays last; the state is told to readers."""
    browser.open(files["class"])
    column = "[...document.querySelectorAll('table.sortable tbody tr')].map(row => row.cells[2].textContent)"
    for direction, factor in (("ascending", 1), ("descending", -1)):
        browser.run("document.querySelectorAll('button.sort')[2].focus()")
        for kind in ("keyDown", "keyUp"):
            browser.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )
        shown = browser.run(column)
        values = [float(text) for text in shown if text != "–"]
        assert values == sorted(values, key=lambda value: factor * value)
        assert shown[len(values) :] == ["–"] * 5
        assert browser.run("document.querySelectorAll('table.sortable th[aria-sort]').length") == 1
        assert browser.run("document.querySelectorAll('button.sort')[2].parentElement.ariaSort") == direction


def test_what_is_folded_is_printed(browser: Browser, files: dict[str, Path]) -> None:
    """On paper nobody can unfold: all checks are there, in dark colours on white, whatever the screen has."""
    browser.open(files["half marks"], dark=True)
    visible = "[...document.querySelectorAll('details.print > :last-child')].map(each => each.checkVisibility())"
    assert set(browser.run(visible)) == {False}
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", media="print", features=[scheme])
    assert set(browser.run(visible)) == {True}
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_links_to_the_handout_open_its_section(browser: Browser, files: dict[str, Path]) -> None:
    """The section is folded until somebody follows the link."""
    browser.open(files["half marks"])
    visible = "document.querySelector('#handout-2').checkVisibility()"
    assert browser.run(visible) is False
    browser.run("document.querySelector('a[href=\"#handout-2\"]').click()")
    browser.run("new Promise(done => setTimeout(done, 100))")
    assert browser.run(visible) is True

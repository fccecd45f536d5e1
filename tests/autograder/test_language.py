"""Languages: complete catalogues, sentences found again, pages without a bare text, and no grade that depends on any of it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from babel.messages.catalog import Message
from typer import rich_utils

from autograder import cli, grade, language, suite
from autograder.authoring import catalogues, corpus
from autograder.authoring.catalogues import Text
from autograder.courses import course
from autograder.courses.feedback_export import StudentPageExporter
from autograder.finding import Finding, Outcome
from autograder.language import FIELD, LOCALE, SAID, Language, LanguageError, Template
from autograder.manifest import HELPERS
from autograder.pages import feedback
from autograder.spec import Check
from autograder.students import command, selfcheck
from autograder.suite import load_assignment

PLACES = list(catalogues.places())
CHINESE = re.compile(r"[\u4e00-\u9fff]")
FOREIGN = re.compile(
    "內存|緩存|線程|進程|函數|默認|返回|調用|服務器|字符|數據|並發|網絡|軟件|硬件|隊列|超時|接口|異步|信息|視頻|[数据内缓线进认调码务网软队时间应请样"
    "个这们为对关过没发]"
)
"""Words of other regions, and characters that are not written here."""


# ------------------------------------------------------------------------------------------------ catalogues


@pytest.mark.parametrize(
    ("path", "code", "texts"), PLACES, ids=lambda each: str(each)[-40:] if isinstance(each, Path) else ""
)
def test_every_catalogue_is_complete(path: Path, code: str, texts: list[Text]) -> None:
    """No text is missing, empty, doubtful or unused, and translations have the fields of the English text."""
    assert catalogues.complaints(path, code, texts) == [], (
        "run python -m autograder.authoring.catalogues, then translate what it lists"
    )


@pytest.mark.parametrize(
    ("path", "code", "texts"), PLACES, ids=lambda each: str(each)[-40:] if isinstance(each, Path) else ""
)
def test_catalogues_are_as_the_command_writes_them(path: Path, code: str, texts: list[Text], tmp_path: Path) -> None:
    """Updating a catalogue that is up to date changes not one byte."""
    copy = tmp_path / path.name
    shutil.copy(path, copy)
    assert not catalogues.update(copy, code, texts)


@pytest.mark.parametrize(
    "path", [path for path, code, _ in PLACES if code == "zh_TW"], ids=lambda path: str(path)[-40:]
)
def test_chinese_is_that_of_taiwan(path: Path) -> None:
    """No word that only other regions use, no half-width mark after a Chinese character, and one way to address readers."""
    for message in catalogues.read(path):
        for text in [message.string] if isinstance(message.string, str) else message.string or ():
            if message.id:
                assert not FOREIGN.search(text), text
                assert not re.search(r"[\u4e00-\u9fff][,;:?!](?!\S*`)|[\u4e00-\u9fff]\.(?=\s|$)|您", text), text


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda po: po.replace('msgid "Speed"\nmsgstr "速度"\n', ""), "'Speed' is not in it"),
        (lambda po: po.replace('msgstr "速度"', 'msgstr ""'), "'Speed' is not translated"),
        (lambda po: po.replace('msgid "Speed"', '#, fuzzy\nmsgid "Speed"'), "'Speed' is marked as doubtful (fuzzy)"),
        (lambda po: po + '\nmsgid "Old"\nmsgstr "舊"\n', "'Old' is not used"),
        (lambda po: po + '\n#~ msgid "Older"\n#~ msgstr "更舊"\n', "'Older' is not used"),
        (lambda po: po.replace("測量環境：%(machine)s", "測量環境"), "has the fields ['%(machine)s'], its translation others"),
        (lambda po: po.replace('msgstr "回傳了 {0}"', 'msgstr "回傳了 {1}"'), "has the fields ['{0}'], its translation others"),
    ],
    ids=["missing", "empty", "fuzzy", "unused", "obsolete", "named field", "numbered field"],
)  # fmt: skip
def test_what_is_wrong_with_a_catalogue_is_told(change: object, complaint: str, tmp_path: Path) -> None:
    """Each way in which a catalogue can be incomplete is one line, which names the text."""
    path = tmp_path / "zh_TW.po"
    assert callable(change)
    before = (LOCALE / "zh_TW.po").read_text(encoding="utf-8")
    path.write_text(change(before), encoding="utf-8")
    assert path.read_text(encoding="utf-8") != before
    (said,) = catalogues.complaints(path, "zh_TW", list(catalogues.of_framework()))
    assert complaint in said


def test_no_text_is_marked_where_nobody_looks() -> None:
    """Every text that a module gives to gettext is found by the extraction, which does not look into f-strings."""
    found = {
        each for text in catalogues.of_framework() for each in ([text.id] if isinstance(text.id, str) else text.id)
    }
    for path in Path(language.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("_", "N_", "ngettext"):
                marked = {
                    each.value for each in node.args if isinstance(each, ast.Constant) and type(each.value) is str
                }
                assert marked <= found, f"{path.name}: {marked}"


def test_a_release_holds_no_text_of_a_hidden_check() -> None:
    """What is released beside the public checks is the translation of what they and the release say in English."""
    for name in suite.names():
        texts = list(catalogues.of_suite(load_assignment(name), suite.folder(name)))
        shown = {str(text.id) for text in texts if not text.hidden}
        for file, text in catalogues.released(load_assignment(name), suite.folder(name)).items():
            written = (suite.repository() / "assignments" / name / file).read_text(encoding="utf-8")
            assert written == text
            joined = re.sub(r'"\n"', "", written)
            assert not [each for each in texts if each.hidden and str(each.id) not in shown and str(each.id) in joined]
            assert all(f'"{each}"' in joined.replace('\\"', '"') for each in shown)


# ------------------------------------------------------------------------------------------------ sentences


def chinese(name: str = "kv_cache") -> Language:
    """Traditional Chinese with the texts of an assignment."""
    return language.load("zh_TW", suite.folder(name))


def filled(text: str) -> str:
    """A sentence with something in its fields."""
    return FIELD.sub(lambda found: f"<{found[1]}>", text)


SENTENCES = [
    pytest.param(name, message, id=f"{name}-{number}")
    for name in ("", *suite.names())
    for number, message in enumerate(catalogues.read((suite.folder(name) if name else LOCALE) / "zh_TW.po"))
    if message.context == SAID
]


@pytest.mark.parametrize(("name", "message"), SENTENCES)
def test_every_sentence_is_found_again(name: str, message: Message) -> None:
    """Whatever stands in its fields, what the judge or a check says is found by its own template, alone and as a label."""
    english, wanted = filled(str(message.id)), filled(str(message.string))
    assert chinese(name or "kv_cache").said(english) == wanted
    assert not name or chinese(name).said(f"{english}: wrong value.") == f"{wanted}：值不正確。"


@pytest.mark.parametrize("name", suite.names())
def test_what_a_check_says_is_not_taken_for_a_value(name: str) -> None:
    """A value begins and ends with a quote, a bracket or a digit, so a template does with letters, or has many."""
    for template in chinese(name).templates:
        if template.suite:
            letters = [sum(map(str.isalpha, part)) for part in template.parts]
            assert letters[0] or letters[-1] or sum(letters) > 6, f"too general: {template.parts}"


@pytest.mark.parametrize("name", suite.names())
def test_the_submissions_words_stay_as_they_are(name: str) -> None:
    """An exception's text may look like what a check says of a value."""
    theirs = "RuntimeError：The size of tensor a (3) must match the size of tensor b (4)"
    english = f"Your code raised {theirs.replace('：', ': ')} (cell f, line 3: a @ b)"
    assert chinese(name).said(english) == f"你的程式碼引發了 {theirs}（儲存格 f，第 3 行：a @ b）"
    ended = "Your code raised APIError: a must be a b. (cell f, line 3: g())"
    assert chinese(name).said(ended) == "你的程式碼引發了 APIError：a must be a b.（儲存格 f，第 3 行：g()）"
    loaded = f"The cell of f could not be loaded: {ended}"
    assert chinese(name).said(loaded) == f"f 的儲存格無法載入：{chinese(name).said(ended)}"
    logged = "The answer ended (status 500) without the first token. Its server logged: KeyError: 'The codes of x.'"
    assert chinese(name).said(logged).endswith("它的伺服器記錄了：KeyError: 'The codes of x.'")


def test_fields_of_labels_are_translated_and_fit_their_surroundings() -> None:
    """A label in a sentence is translated, with or without its comma; spaces stand between scripts only."""
    said = chinese("batched_inference").said
    assert said("tokens_per_s of x: wrong value.") == "x 的 tokens_per_s：值不正確。"
    nested = "The min_s of benchmark on a device that works by itself: wrong value."
    assert said(nested) == "在自行運作的裝置上的 benchmark 的 min_s：值不正確。"
    columns = "How many columns the model read in each call of greedy_generate for [[1]], with use_cache=True"
    assert said(f"{columns}: wrong value.") == said(f"{columns}, must raise X.").replace("必須引發 X", "值不正確")
    assert chinese("kv_cache").said("Bytes of one layer with keys of 192 and values of 128: wrong value.") == (
        "位元組數（key 長度 192、value 長度 128 的一層）：值不正確。"
    )
    assert chinese("quantization").said("The report of the example: wrong value.") == "報告（講義的例子）：值不正確。"


@pytest.mark.parametrize(
    ("english", "wanted"),
    [
        ("Your code did not answer within 5 s, the limit of one call.", "你的程式碼在 5 秒內沒有回應（時限的範圍：一次呼叫）。"),
        ("Your code was killed: used more than 2.0 GiB of memory.", "你的程式碼被終止：用量超過 2.0 GiB 的記憶體。"),
        ("While it was being loaded, your code ended with exit code 3.", "載入時，你的程式碼以結束代碼 3 結束。"),
        (
            "Your code raised ZeroDivisionError: division by zero (cell f, line 3: 1 / 0) — that is in g, which this task calls",
            "你的程式碼引發了 ZeroDivisionError：division by zero（儲存格 f，第 3 行：1 / 0）；這發生在這個任務所呼叫的 g 裡",
        ),
        ("Nothing of ours says this.", "Nothing of ours says this."),
        ("", ""),
    ],
)  # fmt: skip
def test_sentences_in_sentences_are_translated(english: str, wanted: str) -> None:
    """What the judge puts together from several texts is taken apart again; other text stays as it is."""
    assert chinese().said(english) == wanted


@pytest.mark.parametrize(
    "piece", ["Your code raised X: ", " (cell a, line 1: ", " — that is in x, which this task calls", "."]
)
def test_no_text_of_a_submission_makes_it_slow(piece: str) -> None:
    """A text that looks like many sentences in one another is done with in linear time, a few sentences deep."""
    text = "Your code raised X: " + piece * 20_000
    assert len(chinese().said(text)) > 1000


def test_a_template_fits_whole_texts_only() -> None:
    """Text before the beginning and behind the end belongs to a field or to another sentence."""
    template = Template.of("{0} must be {1}.", "{1}：{0}")
    assert template.fit("a must be b.") == ["", "a", "b"]
    assert template.fit("a must be b. No.") == ["", "a", "b. No"]
    assert template.fit("a must be b") is None
    assert Template.of(" (in {0})", "（{0}）").fit("x (in y)") == ["x", "y"]
    assert Template.of("no {0}", "{0}").fit("n") is None


ENGLISH_WORDS = re.compile(r"(?<![-\w])(of|the|The|with|and|for|after|is|are|that|must|gives?|not|no)(?![-\w])")
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")


def all_tasks_wrong(name: str) -> dict[str, str]:
    """A submission, by cell: each task from the first submission of the corpus that gets it wrong in a public check."""
    entries = corpus.load(name)
    right = next(entry.answers for entry in entries if entry.name == "reference")
    public = {check.name: check.task for check in load_assignment(name).checks if not check.hidden}
    answers = dict(right)
    for entry in reversed([entry for entry in entries if entry.kind == "wrong" and entry.name != "stub"]):
        if entry.answers[HELPERS] == right[HELPERS]:
            failed = {public[check] for check in entry.fails & public.keys()}
            answers |= {task: entry.answers[task] for task in failed if entry.answers[task] != right[task]}
    return answers


@pytest.mark.parametrize("name", suite.names())
def test_what_public_checks_find_is_told_in_chinese(name: str, tmp_path: Path) -> None:
    """A submission with all tasks wrong is told why without an English word, but for what it said itself."""
    folder = tmp_path / name
    shutil.copytree(suite.repository() / "assignments" / name, folder)
    (folder / f"{name}.py").unlink()
    nbformat.write(corpus.notebook(name, all_tasks_wrong(name)), folder / f"{name}.ipynb")
    found = [each for each in selfcheck.run(folder).findings if each.outcome is Outcome.FAILED]
    assert len(found) >= 3
    with language.use(language.load("zh_TW", folder)):
        told = [dict(row.details) for row in feedback.rows(load_assignment(name), found)]
    for row in told:
        theirs = row["what happened:"].startswith("你的程式碼引發了")
        for text in (
            [] if theirs else [row["what happened:"].partition("它的伺服器記錄了")[0], row.get("expected:", "")]
        ):
            assert not ENGLISH_WORDS.search(QUOTED.sub("", text)), text


# ------------------------------------------------------------------------------------------------ which language


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, "en"),
        ({"LANG": "zh_TW.UTF-8"}, "zh_TW"),
        ({"LANG": "zh_TW.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
        ({"LANG": "C.UTF-8", "LANGUAGE": "zh_TW:en"}, "zh_TW"),
        ({"LANGUAGE": "de:zh_TW"}, "zh_TW"),
        ({"LANGUAGE": "en:zh_TW"}, "en"),
        ({"LANG": "zh-Hant-TW"}, "zh_TW"),
        ({"LC_MESSAGES": "zh_HK.Big5-HKSCS"}, "zh_TW"),
        ({"LANG": "de_DE@euro"}, "en"),
    ],
)
def test_the_environment_chooses(environment: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As gettext reads it: the first variable that is set counts, and of it the first language that we have."""
    for name in language.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert language.chosen() == wanted
    assert language.chosen("zh-TW") == "zh_TW"
    assert language.chosen("en") == "en"


def test_a_language_that_is_not_here_is_refused_by_name() -> None:
    """With what there is instead."""
    with pytest.raises(LanguageError, match=r"'tlh'.*en, zh_TW"):
        language.chosen("tlh")
    with pytest.raises(LanguageError, match="'tlh'"):
        language.load("tlh")


def test_a_course_has_a_language_for_its_pages(tmp_path: Path) -> None:
    """What `configure` was given reaches nbgrader's exporter and the command `report`; an unknown one is refused by name."""
    config = tmp_path / course.CONFIG
    text = "from autograder.courses.course import configure\nconfigure(get_config(), language={!r})\n"
    for given, wanted in (("zh-Hant", "zh_TW"), ("en", "en")):
        config.write_text(text.format(given), encoding="utf-8")
        assert course.language(tmp_path) == wanted
        assert StudentPageExporter(config=course.load_config(tmp_path)).language == wanted
    config.write_text(text.format("tlh"), encoding="utf-8")
    with pytest.raises(course.CourseError, match="'tlh'"):
        course.language(tmp_path)


def test_a_damaged_catalogue_is_told_with_a_way_out(tmp_path: Path) -> None:
    """The copy in a student's folder may hold anything."""
    (tmp_path / "zh_TW.po").write_bytes(b'msgid "\xff\xfe')
    with pytest.raises(LanguageError, match="--lang en"):
        language.load("zh_TW", tmp_path)


# ------------------------------------------------------------------------------------------------ what is shown


def finding(check: Check, outcome: Outcome = Outcome.FAILED, **fields: object) -> Finding:
    """A finding of `check`."""
    known = {
        "check": check.name,
        "task": check.task,
        "outcome": outcome,
        "hidden": check.hidden,
        "sentence": "A sentence.",
    }
    return Finding.model_validate(known | fields)


def test_what_the_gradebook_keeps_is_english(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs in autograded notebooks are compared byte for byte; they do not depend on who grades where."""
    assignment = load_assignment("kv_cache")
    findings = [finding(check) for check in assignment.checks]
    task = grade.score(assignment, findings).tasks[0]
    monkeypatch.setenv("LANGUAGE", "zh_TW")
    html = feedback.findings_html(task, feedback.rows(assignment, findings, task.task), ["x"], "about")
    assert 'lang="en"' in html
    assert not CHINESE.search(html)


def test_rows_are_in_the_language_in_use() -> None:
    """Sentence, hint and the judge's words are translated; values and what others wrote are not."""
    assignment = load_assignment("kv_cache")
    check = next(check for check in assignment.checks if not check.hidden)
    found = finding(
        check, message="Bytes of one token: wrong value.", value="1",
        sentence="A contiguous cache holds the tokens of all sequences, and nothing for no sequences.",
        hint="Without a block_size nothing is rounded.",
    )  # fmt: skip
    with language.use(chinese()):
        (row,) = feedback.rows(assignment, [found])
    assert CHINESE.search(row.sentence)
    details = dict(row.details)
    assert details["what happened:"].endswith("：值不正確。")
    assert details["your value:"] == "1"
    assert CHINESE.search(details["next:"])


# ------------------------------------------------------------------------------------------------ commands


def released(folder: Path) -> Path:
    """A fetched assignment, not begun but for one task, which is wrong."""
    shutil.copytree(suite.repository() / "assignments" / "kv_cache", folder)
    script = folder / "kv_cache.py"
    text = script.read_text(encoding="utf-8")
    head = text.index("def kv_bytes_per_token")
    end = text.index("# %%", head)
    stub = "def kv_bytes_per_token(spec, tp=1):\n    return spec.layers[0].n_kv_heads / 0 if tp == 2 else 1.5\n\n\n"
    script.write_text(text[:head] + stub + text[end:], encoding="utf-8")
    return folder


def test_no_finding_depends_on_a_language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judged where everything speaks Chinese, the findings are byte for byte those of an English machine."""
    folder = released(tmp_path / "kv_cache")

    def judged_here() -> list[Finding]:
        found = selfcheck.run(folder, "kv_bytes_per_token").findings
        return [each.model_copy(update={"seconds": 0.0}) for each in found]

    english = judged_here()
    for name in language.VARIABLES:
        monkeypatch.setenv(name, "zh_TW.UTF-8")
    with language.use(chinese()):
        assert [each.model_dump_json() for each in judged_here()] == [each.model_dump_json() for each in english]
    assert {each.outcome for each in english} == {Outcome.FAILED}


def test_check_speaks_the_language_that_was_asked_for(tmp_path: Path) -> None:
    """`autograder check --lang zh_TW` in a fetched folder: table, sentences and errors."""
    folder = released(tmp_path / "kv_cache")

    def said(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "autograder", "check", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False)
        return done.returncode, done.stdout + done.stderr

    code, text = said(str(folder), "--task", "kv_bytes_per_token", "--lang", "zh_TW")
    assert code == 1
    for part in ("已讀取 kv_cache.py（", "未通過", "型別不對", "公開檢查 0／3 分", "提示："):
        assert part in text
    assert "Each layer stores" not in text
    code, text = said(str(folder), "--task", "nothing", "--lang", "zh_TW")
    assert code == 1
    assert "裡沒有任務 'nothing'" in text
    code, text = said(str(folder), "--lang", "tlh")
    assert code == 1
    assert "There is no language 'tlh' here." in text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (
            ["check", "--help"],
            ("用法：", "不計成績", "引數", "選項", "只檢查這個任務", "[預設：.]", "顯示這段說明後結束"),
        ),
        (["sync", "--help"], ("用法：", "檔一致", "會被覆寫", "[必填]")),
        (["check", "--foo"], ("用法：", "請參考說明", "錯誤", "沒有這個選項：--foo")),
        (["check", "--tas"], ("沒有這個選項：--tas（可能是：--task）",)),
        (["check", "--task"], ("選項 '--task' 需要一個引數。",)),
        (["check", "--inline=3"], ("選項 '--inline' 不接受值。",)),
        (["check", "a", "b"], ("多餘的引數（b）",)),
        (["sync"], ("缺少引數 'path'。",)),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("asked", [["--lang", "zh_TW"], ["--lang=zh_TW"], []], ids=["lang", "lang=", "environment"])
def test_typers_own_words_are_in_the_students_language(
    arguments: list[str], parts: tuple[str, ...], asked: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Help and errors of the commands that students run, headings included, whether an option or the environment asks."""
    for name in language.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    if not asked:
        monkeypatch.setenv("LANGUAGE", "zh_TW")
    monkeypatch.setattr(sys, "argv", ["autograder", arguments[0], *asked, *arguments[1:]])
    for name in command.HEADINGS:
        monkeypatch.setattr(rich_utils, name, getattr(rich_utils, name))
    with pytest.raises(SystemExit):
        cli.main()
    shown = "".join(capsys.readouterr())
    for part in parts:
        assert part in shown
    assert not re.search("Usage|Options|Arguments|Error|Try ", shown)

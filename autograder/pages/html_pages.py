"""Pages as HTML: templates, and what makes a page safe to open and small enough to hand out.

Covered: one file without anything from elsewhere; a content security policy that allows our own style sheet (and, on the
class page, our own script) by hash and nothing else; everything that is not ours escaped, control characters replaced;
at most `MOST_BYTES`, whatever a submission contains. Not covered: what may be shown at all (`autograder.pages.student_page`).
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape

from autograder.finding import Outcome
from autograder.language import _, ngettext, said, spoken
from autograder.pages.class_page import ClassPage, SpeedFigures
from autograder.pages.feedback import CONTROL, MARKS, NAMES, points_text
from autograder.pages.student_page import Speed, StudentPage

__all__ = ["MOST_BYTES", "class_html", "student_html"]

MOST_BYTES = 1_000_000
LIMITS = (4000, 1000, 300, 100)
"""Characters that one text of a submission may have on a page; the next one is taken if the page became too large."""
CODE_FACTOR = 50
"""How many times as much all code together may have, a line counting for `LINE` more."""
LINE = 14
SHORTENED = " […]"


def student_html(page: StudentPage) -> str:
    """The page as one HTML file of at most `MOST_BYTES`, in the language in use, as `page` should have been made in."""
    return _fitting("student.html", scripted=False, page=page, plot=_speed_plot)


def class_html(page: ClassPage, csv: str) -> str:
    """The instructor's page as one HTML file; `csv` is the name of the file beside it. As large as the class needs."""

    def grades(label: str) -> Markup:
        from autograder.pages import plots

        return Markup(plots.grades(label, "grades", page.grades, page.assignment.points))  # noqa: S704  # as below

    def speeds(figures: SpeedFigures, number_on_page: int, label: str) -> Markup:
        from autograder.pages import plots

        made = plots.ratios(label, f"speeds-{number_on_page}", figures.ratios, figures.asked)
        return Markup(made)  # noqa: S704  # as below

    values = {"scripted": True, "page": page, "csv": csv, "grades_plot": grades, "speed_plot": speeds}
    return _render("class.html", LIMITS[1], **values)


def _fitting(template: str, **values: Any) -> str:
    """Render `template`, with the shorter texts the longer it becomes."""
    for most in LIMITS:
        made = _render(template, most, **values)
        if len(made.encode()) <= MOST_BYTES:
            break
    return made


def _render(template: str, most: int, **values: Any) -> str:
    style, script = _asset("page.css"), _asset("page.js")
    budget = [most * CODE_FACTOR]

    def code(source: str) -> Markup:
        """Source text, one element a line, so that a line has a number that is not selected with it."""
        shown = []
        for line in clean(source).rstrip().split("\n"):
            budget[0] -= len(line) + LINE
            if budget[0] < 0:
                shown.append(Markup("<b>{}</b>").format(SHORTENED.strip()))
                break
            shown.append(Markup("<span>{}</span>").format(line))
        return Markup("\n").join(shown)

    return _environment().get_template(template).render(
        **values,
        style=Markup(style),  # noqa: S704  # our own file
        script=Markup(script),  # noqa: S704  # our own file
        style_hash=_hash(style),
        script_hash=_hash(script),
        lang=spoken().tag,
        text=lambda text: shortened(clean(text), most),
        code=code,
    )  # fmt: skip


def clean(text: str) -> str:
    """`text` without characters that nobody sees and that change what stands around them."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def shortened(text: str, most: int) -> str:
    """`text`, or its beginning."""
    return text if len(text) <= most else text[:most] + SHORTENED


def number(value: float, digits: int = 3) -> str:
    """A measured number with its significant digits and no exponent: 0.0123, 1.53, 1240."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def duration(microseconds: float) -> str:
    """A time with a fitting unit."""
    for limit, factor, unit in ((1e3, 1.0, "µs"), (1e6, 1e3, "ms")):
        if microseconds < limit:
            return f"{number(microseconds / factor)} {unit}"
    return f"{number(microseconds / 1e6)} s"


def prose(text: str) -> Markup:
    """A sentence as HTML, names between backticks as code. Whatever else stands in it stays text."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  # escaped


@functools.lru_cache(maxsize=512)
def markdown(text: str) -> Markup:
    """The course's own text as HTML: headings one level lower, mathematics as MathML; HTML in it stays text."""
    from latex2mathml.converter import convert
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def mathematics(source: str, about: dict[str, Any]) -> str:
        inside = re.sub(r"\\text\{([^{}]*)\}", lambda found: _text_with_math(found[1]), source)
        return str(convert(inside, display="block" if about["display_mode"] else "inline"))

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    parser.use(dollarmath_plugin, renderer=mathematics)
    tokens = parser.parse(text)
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if before.type == "th_open" and not token.content:  # no header, whatever Markdown calls it
            before.tag = after.tag = "td"
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"
        elif token.type in ("table_open", "fence", "code_block"):  # may be wider than a phone, and then scrolls
            token.attrSet("tabindex", "0")
    return Markup(parser.renderer.render(tokens, parser.options, {}))  # noqa: S704  # the parser escapes


def _text_with_math(text: str) -> str:
    """LaTeX allows $x$ and \\_ inside \\text; the converter does not."""
    text = text.replace("\\_", "_")
    return "\\text{" + re.sub(r"\$([^$]+)\$", lambda found: "}" + found[1] + "\\text{", text) + "}"


def _speed_plot(speed: Speed, number_on_page: int, label: str) -> Markup:
    from autograder.pages import plots  # loads matplotlib, which takes 0.4 s

    made = plots.speed(
        label,
        f"speed-{number_on_page}",
        ratio=speed.ratio,
        low=speed.low,
        high=speed.high,
        asked=speed.asked,
        naive=speed.naive,
    )
    return Markup(made)  # noqa: S704  # ElementTree wrote it, and escapes


@functools.cache
def _asset(name: str) -> str:
    return resources.files("autograder.pages").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("autograder.pages"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        extensions=["jinja2.ext.i18n"],
    )
    made.install_gettext_callables(_, ngettext, newstyle=True)  # type: ignore[attr-defined]  # the extension's
    made.filters |= {
        "points": lambda points: points_text(round(points, 2)),
        "markdown": markdown,
        "number": number,
        "duration": duration,
        "prose": prose,
    }
    made.globals |= {"marks": MARKS, "Outcome": Outcome, "names": NAMES, "said": said}
    return made

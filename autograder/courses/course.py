"""An nbgrader course that grades with us: its folder, its configuration, its assignments."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from autograder import suite
from autograder.authoring import build
from autograder.errors import AutograderError

if TYPE_CHECKING:
    from autograder.signing import PublicKey

__all__ = ["CONFIG", "CourseError", "api", "configure", "find", "init", "isolation", "language", "load_config"]
__all__ += ["public_key", "require_ours"]

CONFIG = "nbgrader_config.py"
COLLECTED = ("submitted", "autograded", "feedback")
"""Folders of a course that hold what came from students."""
TEMPLATE = '''"""nbgrader's settings for this course. https://nbgrader.readthedocs.io/en/stable/configuration/config_options.html"""

from autograder.courses.course import configure

c = get_config()  # noqa: F821  (nbgrader provides it)
# Grades come from autograder's results; stock nbgrader commands and formgrader use them too.
# isolation is the lowest that a grade may be made with: "sandbox", or "process" where nobody has a reason to cheat.
# language="zh_TW" has students' pages in Traditional Chinese.
# public_key="ssh-ed25519 ..." makes results count only if they are signed: `autograder keys new PATH` gives the line.
configure(c, isolation={isolation!r})

c.CourseDirectory.course_id = {course_id!r}
{exchange}
# c.CourseDirectory.db_url = "postgresql+psycopg:///gradebook"
# c.LateSubmissionPlugin.penalty_method = "zero"
'''


class CourseError(AutograderError):
    """The course folder is not what it should be. Says what to do."""


def configure(config: Any, isolation: str = "sandbox", public_key: str = "", language: str = "en") -> None:
    """Make nbgrader use our preprocessors. Call this in `nbgrader_config.py`.

    `language` is that of students' pages. With a `public_key` only results that are signed with its private key are entered
    into the gradebook.
    """
    from autograder import language as languages
    from autograder.courses import feedback_export, intake, preprocessors

    config.EnterResults.isolation = isolation
    config.EnterResults.public_key = public_key
    config.ExchangeFactory.collect = intake.PlainCollect
    config.Autograde.pre_convert_hook = intake.set_aside
    config.Autograde.sanitize_preprocessors = preprocessors.SANITIZE
    config.Autograde.autograde_preprocessors = preprocessors.AUTOGRADE
    config.StudentPageExporter.language = languages.chosen(language)
    config.NotebookExporter.optimistic_validation = True  # of a notebook, after all preprocessors: not after each one
    config.GenerateFeedback.exporter_class = feedback_export.StudentPageExporter


def init(
    folder: Path, names: list[str], *, course_id: str, exchange: Path | None = None, isolation: str = "sandbox"
) -> None:
    """Make `folder` an nbgrader course with the assignments `names`. What is there already stays; sources are renewed."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / CONFIG
    if not config.exists():
        line = f"c.Exchange.root = {str(exchange)!r}" if exchange else "# c.Exchange.root = '/srv/nbgrader/exchange'"
        config.write_text(TEMPLATE.format(course_id=course_id, exchange=line, isolation=isolation), encoding="utf-8")
    for name in names:
        _add(folder, name)


def _add(folder: Path, name: str) -> None:
    """Put an assignment into the course, and make sure that nbgrader releases what `assignments/` holds."""
    released = suite.repository() / "assignments" / name
    files = {path.name: path.read_text(encoding="utf-8") for path in released.iterdir() if path.suffix != ".ipynb"}
    files[f"{name}.ipynb"] = build.source_files(build.read_source(name))[f"{name}.ipynb"]
    for path, text in files.items():
        target = folder / "source" / name / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", newline="\n")
    build.generate(folder, name, config=load_config(folder))
    file = f"{name}.ipynb"
    if (folder / "release" / name / file).read_text(encoding="utf-8").rstrip() != (released / file).read_text(
        encoding="utf-8"
    ).rstrip():
        raise CourseError(
            f"assignments/{name} is not what solutions/{name}.py gives. Run `autograder build {name}` first."
        )


def find(start: Path) -> Path:
    """The course folder that `start` lies in. `CourseError` if there is none."""
    found = [folder for folder in [start.resolve(), *start.resolve().parents] if (folder / CONFIG).is_file()]
    # The file is code. One that a student handed in lies in a course of ours, below submitted/ or autograded/.
    for number, folder in enumerate(found):
        if not any(folder.relative_to(course).parts[0] in COLLECTED for course in found[number + 1 :]):
            return folder
    raise CourseError(
        f"{start.resolve()} is not in an nbgrader course: no {CONFIG} here or above. "
        "Go to the course's folder, or make one with `autograder init FOLDER`."
    )


def load_config(folder: Path) -> Config:
    """nbgrader's configuration of the course."""
    try:
        config = PyFileConfigLoader(CONFIG, path=str(folder)).load_config()
    except Exception as error:  # the file is a program: it can raise anything
        why = f"{type(error).__name__}: {error}"
        raise CourseError(f"{folder / CONFIG} cannot be loaded: {why}. Mend the file.") from error
    config.CourseDirectory.root = str(folder.resolve())
    return config


def require_ours(folder: Path) -> None:
    """Raise `CourseError` if nbgrader would execute notebooks in this course: student code, in no sandbox."""
    from nbgrader.preprocessors import Execute

    from autograder.courses import preprocessors

    configured = load_config(folder).Autograde.get("autograde_preprocessors", [])
    if preprocessors.EnterResults not in configured or Execute in configured:
        raise CourseError(
            f"{folder / CONFIG} does not use autograder's results: with it nbgrader would execute the notebooks. "
            "Add to it: from autograder.courses.course import configure; configure(c)"
        )


def isolation(folder: Path) -> str:
    """The lowest isolation that the course accepts for grades."""
    return str(load_config(folder).EnterResults.get("isolation", "sandbox"))


def language(folder: Path) -> str:
    """The language of students' pages in the course."""
    return str(load_config(folder).StudentPageExporter.get("language", "en"))


def public_key(folder: Path) -> PublicKey | None:
    """The key that results of this course must be signed with, if it has one. Raises `signing.KeyFileError`."""
    from autograder.signing import PublicKey

    line = str(load_config(folder).EnterResults.get("public_key", ""))
    return PublicKey.parse(line) if line else None


def api(folder: Path, isolation: str | None = None, signer: PublicKey | None = None) -> Any:
    """nbgrader's `NbGraderAPI` for the course, as formgrader uses it; with another isolation or key if one is given."""
    from nbgrader.apps import NbGraderAPI

    config = load_config(folder)
    if isolation is not None:
        config.EnterResults.isolation = isolation
    if signer is not None:
        config.EnterResults.public_key = str(signer)
    return NbGraderAPI(config=config)

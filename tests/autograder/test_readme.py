"""The README's map and list of assignments against the disk. Run this file to write both anew."""

from __future__ import annotations

import ast
import re

from autograder import suite

ROOT = suite.repository()
ASSIGNMENTS = "## Assignments\n\n"


def mapped() -> dict[str, str]:
    """Paths in the README's map, with what it says of them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = text.split("## Map", 1)[1].split("```")[1]
    entries = {}
    folder = ""
    for line in block.strip("\n").splitlines():
        match = re.fullmatch(r"(  )?(\S+)\s{2,}(\S.*)", line)
        assert match, f"not a line of a map: {line!r}"
        indent, path, about = match.groups()
        if not indent:
            folder = path if path.endswith("/") else ""
        entries[folder + path if indent else path] = about
    return entries


def modules() -> set[str]:
    """All modules of the two packages that are worth a line."""
    found = (path for package in ("autograder", "gpu_env") for path in (ROOT / package).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix() for path in found if not path.name.startswith("__")}


def test_every_path_of_the_map_is_there() -> None:
    """No line of the map describes something that is gone."""
    assert not [path for path in mapped() if not (ROOT / path).exists()]


def test_every_module_is_on_the_map() -> None:
    """A folder's listing and the map explain the same files."""
    assert modules() == {path for path in mapped() if path.endswith(".py")}


def test_the_map_says_what_the_modules_say() -> None:
    """A line of the map is the first sentence of the module's docstring."""
    for path, about in mapped().items():
        if path.endswith(".py"):
            docstring = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or ""
            assert first_sentence(docstring) == about, path


def first_sentence(docstring: str) -> str:
    """The docstring up to its first full stop or colon."""
    return re.split(r"[.:](?:\s|$)", " ".join(docstring.split()), maxsplit=1)[0]


def assignments() -> str:
    """The table of assignments as it should stand in the README."""
    lines = ["| assignment | about | tasks | points | hours |", "|---|---|--:|--:|--:|"]
    for name in suite.names():
        found = suite.load_assignment(name)
        points = sum(check.points for check in found.checks)
        hours = sum(task.minutes for task in found) / 60
        lines.append(f"| `{name}` | {found.title} | {len(tuple(found))} | {points} | {hours:.1f} |")
    return "\n".join(lines)


def test_the_assignments_are_listed_as_they_are() -> None:
    """Titles, tasks, points and hours are those of the suites."""
    assert assignments() in (ROOT / "README.md").read_text(encoding="utf-8")


def write_map() -> str:
    """The map as it should stand in the README."""
    lines = []
    for folder, about in (
        ("solutions/", "the one source of each assignment, as a readable py:percent file"),
        ("assignments/", "generated from it, committed: what nbgrader releases"),
        ("autograder/", "the framework"),
        ("autograder/authoring/", "for authors: build releases, try the corpus, mutate the reference"),
        ("autograder/courses/", "the nbgrader course: what it collects, its gradebook, its feedback"),
        ("autograder/judging/", "one submission: the judge, its view of the worker, what it measures"),
        ("autograder/pages/", "HTML pages and their plots"),
        ("autograder/reports/", "grades and findings for people and other tools"),
        ("autograder/runs/", "many submissions: on one machine, on a cluster, again"),
        ("autograder/sandboxing/", "where student code runs: isolation levels and what each covers"),
        ("autograder/students/", "what students run: `check(...)`, `autograder check`, the paired files"),
        ("autograder/worker/", "everything of ours that is loaded beside student code"),
        ("gpu_env/", "what machine is this, which models lie here"),
        ("tests/grading/", "the suites: spec (points), public and hidden checks, oracles"),
        ("tests/submissions/", "the corpus: right, wrong and hostile submissions"),
        ("tests/benchmarks/", "figures: speed, robustness, verdicts, load"),
        ("tests/autograder/", "the framework's own tests"),
        ("tests/gpu_env/", "and those of gpu_env"),
    ):
        lines.append(f"{folder:<24}{about}")
        if folder.startswith(("autograder", "gpu_env")):
            for path in sorted((ROOT / folder).glob("[!_]*.py")):
                about = first_sentence(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
                lines.append(f"  {path.name:<22}{about}")
    return "\n".join(lines)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(ASSIGNMENTS, 1)
    text = f"{before}{ASSIGNMENTS}{assignments()}\n\n##{rest.split('##', 1)[1]}"
    head, rest = text.split("## Map", 1)
    _, _, after = rest.split("```", 2)
    readme.write_text(f"{head}## Map\n\n```\n{write_map()}\n```{after}", encoding="utf-8")

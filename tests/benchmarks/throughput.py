"""How fast a class is graded: `autograder grade` against the same checks as ordinary cells of a stock nbgrader course.

    python tests/benchmarks/throughput.py [--quick] [--json] [--submissions 40]

Two courses are made in a temporary folder. In ours, `autograder grade kv_cache` judges and enters a class of right,
wrong and unfinished submissions, no two alike, with one worker and with one per core. In the other, stock
`nbgrader autograde` grades the same class: one kernel per submission, torch and transformers imported, one cell per
check, the suite's text in a setup cell. Commands alternate (cores, stock, one, one, stock, cores), so that a machine
that slows down favours nobody. Figures count whole commands, warm-up included, unless they say otherwise.

Kind to nbgrader: cells for prose, plots and experiments are left out of its notebooks, and calls are made directly.
Both sides give every submission the same points on every check, or the script fails.
Not covered: collecting, feedback, GPUs, endless loops (stock has no limit per call), stock spread over processes.
`--quick` takes few submissions and one round, and projects both sides to the full class.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from autograder import build, corpus, course, gradebook, results, suite
from autograder.finding import Outcome
from autograder.remote import RunningSubmission
from autograder.results import Result
from autograder.sandbox import Limits, best_sandbox

NAME = "kv_cache"
CLASS = "RWRURWRURW"
"""A class in tens: right, wrong, unfinished."""
SLOW = "test_length_of_huge_limit"
"""Who fails this check counts up to 10**9, which only we stop."""
QUICK = 6
ROUND = ["cores", "stock", "one"]
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
STOCK_CONFIG = 'c = get_config()\nc.CourseDirectory.course_id = "stock"\nc.ExecutePreprocessor.timeout = 300\n'
STOCK_SETUP = "import torch\nimport transformers\n\n"
FUTURE = "from __future__ import annotations\n"


# ---------------------------------------------------------------------------------------------------------- the class


def submissions(count: int) -> dict[str, dict[str, str]]:
    """Answers of a class, by student. The names say which half of the class (a, b) is graded in which round."""
    entries = [entry for entry in corpus.load(NAME) if entry.kind in ("right", "wrong") and entry.name != "stub"]
    right = [entry.answers for entry in entries if entry.kind == "right"]
    wrong = [entry.answers for entry in entries if entry.kind == "wrong" and SLOW not in entry.fails]
    reference, stub = right[0], corpus.stub(NAME).answers
    tasks = list(suite.load_assignment(NAME))
    unfinished = [reference | {task.name: stub[task.name] for task in tasks[done:]} for done in range(len(tasks))]
    kinds = {"R": right, "W": wrong or unfinished, "U": unfinished}
    order = [CLASS[number % len(CLASS)] for number in range(count)]
    made = {}
    for number, kind in enumerate(order):
        share = order[:number].count(kind) / order.count(kind)
        answers = kinds[kind][int(share * len(kinds[kind]))]
        student = f"{'a' if number < (count + 1) // 2 else 'b'}{number:03}"
        made[student] = {name: _vary(source, number) for name, source in answers.items()}
    return made


def _vary(source: str, number: int) -> str:
    """The same code in another hand: local names end in a number, and there is a comment."""
    comment = f"\n# Version {number}, checked twice."
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source + comment
    locals_: set[str] = set()
    others = {"self", "cls"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            locals_.add(node.id)
        elif isinstance(node, ast.arg):
            others.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            others.add(node.name)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            others.update(node.names)
        elif isinstance(node, ast.alias):
            others.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            others.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            others.add(node.rest)
    bodies = [tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    for body in bodies:
        for statement in body:  # names of the module and of classes are seen from elsewhere
            if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                others.update(part.id for part in ast.walk(statement) if isinstance(part, ast.Name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in locals_ - others:
            node.id = f"{node.id}_{number}"
    return ast.unparse(tree) + comment if tree.body else source + comment


# --------------------------------------------------------------------------------------------------------- the courses


def our_course(folder: Path, handed_in: dict[str, dict[str, str]]) -> None:
    """A course that grades with us."""
    course.init(folder, [NAME], course_id="ours")
    for student, answers in handed_in.items():
        _hand_in(folder, student, suite.repository() / "assignments" / NAME / f"{NAME}.ipynb", answers)


def stock_course(folder: Path, handed_in: dict[str, dict[str, str]]) -> None:
    """A course as nbgrader's manual has it: checks in autograder cells after each task."""
    folder.mkdir()
    (folder / course.CONFIG).write_text(STOCK_CONFIG)
    cells = [_stock_cell("setup", _setup())]
    for cell in build.read_source(NAME).notebook.cells:
        if "given" in cell.metadata or "helpers" in cell.metadata:
            cells.append(cell)
        elif task := cell.metadata.get("task"):
            cells.append(cell)
            for check in suite.load_assignment(NAME).task(task).checks:
                module = "test_hidden" if check.hidden else "test_public"
                text = f"run({module}.{check.name}, globals())"
                cells.append(_stock_cell(f"{gradebook.CELL}{check.name}", text, check.points))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path = folder / "source" / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    build.generate(folder, NAME, config=course.load_config(folder))
    for student, answers in handed_in.items():
        _hand_in(folder, student, folder / "release" / NAME / f"{NAME}.ipynb", answers)


def _setup() -> str:
    """The setup cell: the suite as it stands, inlined."""
    parts = [STOCK_SETUP + Path(__file__).with_name("in_kernel.py").read_text().replace(FUTURE, "")]
    folder = suite.repository() / "tests" / "grading" / NAME
    for module in ("oracles", "test_public", "test_hidden"):
        parts.append(f"{module} = add_module('grading.{NAME}.{module}', {(folder / f'{module}.py').read_text()!r})")
    return "\n".join(parts)


def _stock_cell(grade_id: str, source: str, points: int | None = None) -> Any:
    cell = new_code_cell(source)
    about = {"grade_id": grade_id, "schema_version": 3, "locked": True, "solution": False, "task": False}
    cell.metadata["nbgrader"] = about | ({"grade": True, "points": points} if points else {"grade": False})
    return cell


def _hand_in(folder: Path, student: str, release: Path, answers: dict[str, str]) -> None:
    notebook = nbformat.read(release, as_version=4)
    for cell in notebook.cells:
        if named := cell.metadata.get("task") or cell.metadata.get("helpers"):
            cell.source = answers[named]
    path = folder / "submitted" / student / NAME / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)


# ------------------------------------------------------------------------------------------------------- the commands


@dataclass(frozen=True)
class Timed:
    """A command that ran: when each line of its output came, in seconds from its start, and when it ended."""

    lines: list[tuple[float, str]]
    seconds: float

    def at(self, pattern: str) -> list[float]:
        """When the lines came that match."""
        return [at for at, line in self.lines if re.search(pattern, line)]


def timed(*command: str, cwd: Path) -> Timed:
    """Run a command of this Python. Fails with its output if it fails."""
    began = time.monotonic()
    lines = []
    with subprocess.Popen(
        [sys.executable, "-m", *command], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        for line in process.stdout:
            lines.append((time.monotonic() - began, line.rstrip()))
    seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n" + "\n".join(line for _, line in lines[-40:]))
    return Timed(lines, seconds)


@dataclass(frozen=True)
class Run:
    """One command that graded `count` submissions; `warm_up_s` is what it takes before the first one."""

    count: int
    seconds: float
    warm_up_s: float

    def projected(self, count: int) -> float:
        """Seconds for a class of `count`."""
        return self.warm_up_s + (self.seconds - self.warm_up_s) * count / self.count


def grade_ours(folder: Path, students: list[str], workers: int) -> tuple[Run, Timed]:
    """`autograder grade`, from nothing stored to the last grade entered."""
    output = timed("autograder", "grade", NAME, "--plain", "--workers", str(workers), cwd=folder)
    return Run(len(students), output.seconds, output.at(f"^grading {NAME} \\.\\.\\.")[0]), output


def grade_stock(folder: Path, students: str, count: int) -> Run:
    """Stock `nbgrader autograde` for the students that match."""
    output = timed("nbgrader", "autograde", NAME, f"--student={students}", cwd=folder)
    return Run(count, output.seconds, output.at("Creating/updating student")[0])


# -------------------------------------------------------------------------------------------------------- the overhead


def shares(folder: Path, students: list[str], output: Timed, call_s: float) -> list[dict[str, float]]:
    """Where the time of each submission went, from a run with one worker: what its checks took, and everything else.

    From one line of the command's output to the next is the whole wall time of a submission.
    """
    judged = _steps(output, f"^grading {NAME} \\.\\.\\.")
    entered = _steps(output, "^entering into nbgrader's gradebook \\.\\.\\.")
    made = []
    for student in students:
        result = stored(folder, student)
        times = result.times
        in_checks = sum(finding.seconds for finding in result.findings)
        started = times["worker_s"] + times["load_s"]
        wire = times["calls"] * call_s
        made.append({
            "checks": in_checks - started - wire,
            "fork of the judge": times["fork_s"],
            "pytest and judge": result.seconds - times["fork_s"] - in_checks,
            "sandbox start": times["worker_s"],
            "import of the submission": times["load_s"],
            "wire": wire,
            "result writing": judged[student] - result.seconds,
            "nbgrader import": entered[student],
        })  # fmt: skip
    return made


def _steps(output: Timed, title: str) -> dict[str, float]:
    """Seconds from line to line of a step, by student."""
    (before,) = output.at(title)
    found = {}
    for at, line in output.lines:
        if at > before and (match := re.match(r"\s+\d+/\d+ (\w+): ", line)) and match[1] not in found:
            found[match[1]] = at - before
            before = at
    return found


def stored(folder: Path, student: str) -> Result:
    """The one result of a student."""
    (path,) = (folder / "results" / NAME / student).glob("*.json")
    result = results.load(path)
    assert result is not None
    return result


def call_seconds() -> float:
    """What a call over the wire costs that does nothing, in seconds: the best batch, for others may be at work."""
    with best_sandbox((), 0) as sandbox:
        running = RunningSubmission([("task", "def nothing(number): return number")], sandbox, Limits())
        best = []
        for _ in range(5):
            began = time.perf_counter()
            for number in range(500):
                running.nothing(number)
            best.append((time.perf_counter() - began) / 500)
        running.close()
    return min(best)


def disagreements(ours: Path, stock: Path, students: list[str]) -> Iterator[str]:
    """Where stock nbgrader gave other points than we did."""
    most = {check.name: float(check.points) for check in suite.load_assignment(NAME).checks}
    theirs, entered = gradebook.recorded(stock, NAME), gradebook.recorded(ours, NAME)
    for student in students:
        findings = stored(ours, student).findings
        checks = {each.check: most[each.check] if each.outcome is Outcome.PASSED else 0.0 for each in findings}
        different = sorted(name for name in most if checks.get(name) != theirs[student].points[name])
        if different or entered[student].total != theirs[student].total:
            totals = f"ours {entered[student].total:g}, stock {theirs[student].total:g}"
            yield f"{student}: {totals}, different in {different}"


# ------------------------------------------------------------------------------------------------------------ the race


@dataclass
class Race:
    """All commands that ran. `single` are our courses graded with one worker, with the output of the command."""

    students: list[str]
    runs: dict[str, list[Run]]
    single: list[tuple[Path, Timed]]
    compared: list[str]
    """Students whom stock nbgrader graded too."""
    call_s: float = float("inf")


def race(folder: Path, count: int, quick: bool) -> Race:
    """Run all commands and compare the points."""
    handed_in = submissions(min(count, QUICK) if quick else count)
    ran = Race(list(handed_in), {"cores": [], "stock": [], "one": []}, [], [])
    our_course(folder / "ours", handed_in)
    stock_course(folder / "stock", handed_in)
    halves = iter(["a000"] if quick else ["a*", "b*"])
    for number, kind in enumerate(ROUND if quick else ROUND + ROUND[::-1]):
        if kind == "stock":
            half = next(halves)
            chosen = [student for student in ran.students if fnmatch(student, half)]
            run = grade_stock(folder / "stock", half, len(chosen))
            ran.compared += chosen
        else:
            ours = folder / f"ours-{number}"
            shutil.copytree(folder / "ours", ours)
            run, output = grade_ours(ours, ran.students, 1 if kind == "one" else CORES)
            if kind == "one":
                ran.call_s = min(ran.call_s, call_seconds())
                ran.single.append((ours, output))
        ran.runs[kind].append(run)
        text = f"{run.count} submissions in {run.seconds:.1f} s, {run.warm_up_s:.1f} s of it before the first"
        print(f"{kind:>5}: {text}", flush=True)
    if found := list(disagreements(ran.single[-1][0], folder / "stock", ran.compared)):
        raise SystemExit("Stock nbgrader and we disagree:\n" + "\n".join(found))
    return ran


def figures_of(ran: Race, count: int) -> dict[str, Any]:
    """What the race comes to, for a class of `count`."""
    took = {kind: statistics.mean(run.projected(count) for run in group) for kind, group in ran.runs.items()}
    after = {
        kind: statistics.mean((run.seconds - run.warm_up_s) / run.count for run in group)
        for kind, group in ran.runs.items()
    }
    spent = [each for ours, output in ran.single for each in shares(ours, ran.students, output, ran.call_s)]
    overheads = [sum(seconds for what, seconds in each.items() if what != "checks") for each in spent]
    calls = [stored(ours, student).times["calls"] for ours, _ in ran.single for student in ran.students]
    return {
        "ratio_vs_nbgrader": took["stock"] / took["cores"],
        "ratio_one_worker": took["stock"] / took["one"],
        "ratio_after_warm_up": after["stock"] / after["cores"],
        "submissions_per_min": 60 * count / took["cores"],
        "submissions_per_min_one_worker": 60 * count / took["one"],
        "submissions_per_min_nbgrader": 60 * count / took["stock"],
        "overhead_s_median": statistics.median(overheads),
        "overhead_s_most": max(overheads),
        "checks_s_median": statistics.median(each["checks"] for each in spent),
        "shares_s": {what: statistics.median(each[what] for each in spent) for what in spent[0]},
        "calls_median": statistics.median(calls),
        "call_us": ran.call_s * 1e6,
        "warm_up_s": statistics.mean(run.warm_up_s for run in ran.runs["cores"]),
        "warm_up_s_nbgrader": statistics.mean(run.warm_up_s for run in ran.runs["stock"]),
        "workers": CORES,
        "submissions": count,
        "submissions_run": len(ran.students),
        "submissions_run_nbgrader": len(ran.compared),
    }


def report(figures: dict[str, Any]) -> None:
    """The figures for people."""
    if figures["submissions_run"] < figures["submissions"]:
        print(
            f"quick: {figures['submissions_run']} submissions by us, {figures['submissions_run_nbgrader']} by stock; "
            f"projected to {figures['submissions']}, warm-up counted once"
        )
    for what, rate, ratio in (
        ("stock nbgrader", "submissions_per_min_nbgrader", None),
        ("autograder, one worker", "submissions_per_min_one_worker", "ratio_one_worker"),
        (f"autograder, {figures['workers']} workers", "submissions_per_min", "ratio_vs_nbgrader"),
    ):
        print(f"{what:24} {figures[rate]:7.1f} submissions/min" + (f", {figures[ratio]:.1f} x stock" if ratio else ""))
    print(f"without warm-up on either side: {figures['ratio_after_warm_up']:.1f} x stock")
    print(f"warm-up, once per command: {figures['warm_up_s']:.1f} s (stock {figures['warm_up_s_nbgrader']:.1f} s)")
    print(
        f"overhead per submission: {figures['overhead_s_median']:.3f} s at the median, "
        f"{figures['overhead_s_most']:.3f} s at most, beyond {figures['checks_s_median']:.3f} s of checks "
        f"({figures['calls_median']:.0f} calls of {figures['call_us']:.0f} µs). Medians, one worker:"
    )
    for what, seconds in figures["shares_s"].items():
        print(f"  {what:26} {1000 * seconds:7.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few submissions, projected; a minute on two cores")
    parser.add_argument("--json", action="store_true", help="the figures as one object on the last line")
    parser.add_argument("--submissions", type=int, default=40, help="size of the class")
    arguments = parser.parse_args()
    if arguments.submissions < 2:
        parser.error("--submissions must be at least 2: the class is graded in two halves")
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        figures = figures_of(race(Path(folder), arguments.submissions, arguments.quick), arguments.submissions)
    report(figures)
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

"""How fast a class is graded: `autograder grade` against stock nbgrader and otter-grader with the same checks.

    python tests/benchmarks/throughput.py [--quick] [--json] [--submissions 40] [--stock 40] [--otter 40] [--scale 200 1000]

The class (`generated_class.py`) has right, wrong and unfinished submissions of `kv_cache`, no two alike. Ours grades and
enters all of it, with one worker and with one per core. Stock `nbgrader autograde` grades some of the same submissions: one
kernel each, torch and transformers imported, one cell per check. So does otter-grader: `otter grade` needs Docker for more
than one at a time; this is `otter.api.grade_submission`, which its containers run, in a pool of a process per core, and
otter enters nothing anywhere. Commands alternate (cores, stock, otter, one, one, otter, stock, cores), so that a machine that
slows down favours nobody. Figures count whole commands, warm-up included, unless they say otherwise. CPU time per submission
is beside them: on a busy machine wall time says little, as two processes of ours get twice the share of one of theirs.

Equal checks: all three give every compared submission the same points on every check of the suite, or the script fails. Both
others take as long for the thousandth submission as for the first (one process each), so few of theirs are enough for a rate.

`--scale` grades larger classes by us alone, one submission in twenty a copy of another, with the CPU time and memory of all
processes: time must grow with the class, memory must not. `estimate.py` makes of these figures what 10,000 would take.
Not covered: collecting, feedback, GPUs, endless loops (the others have no limit per call), nbgrader spread over processes.
`--quick` takes few submissions and one round, and projects all sides to the full class.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from generated_class import (  # type: ignore[import-not-found]
    NAME,
    OTTER_LOOP,
    Class,
    otter_course,
    our_course,
    stock_course,
    submissions,
)  # fmt: skip
from watched import CORES, Watched, watch  # type: ignore[import-not-found]

from autograder import results, suite
from autograder.courses import gradebook
from autograder.finding import Outcome
from autograder.judging.remote import RunningSubmission
from autograder.results import Result
from autograder.sandboxing.sandbox import Limits, best_sandbox
from gpu_env import device

QUICK = 6
QUICK_OTHERS = 2
ROUND = ["cores", "stock", "otter", "one"]
COPIES = 0.05
"""Of the classes that we alone grade."""
GRADING = f"^grading {NAME} \\.\\.\\."
ENTERING = "^entering into nbgrader's gradebook \\.\\.\\."


@dataclass(frozen=True)
class Run:
    """One command that graded `count` submissions; `warm_up_s` is what it takes before the first one."""

    count: int
    seconds: float
    warm_up_s: float
    cpu_s: float
    """CPU time of all its processes after the warm-up."""

    def projected(self, count: int) -> float:
        """Seconds for a class of `count`."""
        return self.warm_up_s + (self.seconds - self.warm_up_s) * count / self.count


def grade_ours(folder: Path, count: int, workers: int) -> tuple[Run, Watched]:
    """`autograder grade`, from nothing stored to the last grade entered."""
    seen = watch("-m", "autograder", "grade", NAME, "--plain", "--workers", str(workers), cwd=folder)
    return _run(count, seen, seen.at(GRADING)[0]), seen


def grade_stock(folder: Path, students: str, count: int) -> Run:
    """Stock `nbgrader autograde` for the students that match."""
    seen = watch("-m", "nbgrader", "autograde", NAME, f"--student={students}", cwd=folder)
    return _run(count, seen, seen.at("Creating/updating student")[0])


def grade_otter(folder: Path, students: list[str]) -> tuple[Run, dict[str, dict[str, float]]]:
    """otter-grader for some students, and the points that it gave."""
    paths = [f"submitted/{student}/{NAME}/{NAME}.ipynb" for student in students]
    (folder / "loop.py").write_text(OTTER_LOOP)
    seen = watch("loop.py", str(min(CORES, len(paths))), *paths, cwd=folder)
    points = dict(json.loads(line) for _, line in seen.lines if line.startswith('["'))
    return _run(len(paths), seen, seen.at("^warm$")[0]), points


def _run(count: int, seen: Watched, warm_up_s: float) -> Run:
    return Run(count, seen.seconds, warm_up_s, seen.cpu_s(warm_up_s))


# -------------------------------------------------------------------------------------------------------- the overhead


def shares(folder: Path, students: list[str], output: Watched, call_s: float) -> list[dict[str, float]]:
    """Where the time of each submission went, from a run with one worker: what its checks took, and everything else.

    From one line of the command's output to the next is the whole wall time of a submission.
    """
    judged, entered = _steps(output, GRADING), _steps(output, ENTERING)
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


def _steps(output: Watched, title: str) -> dict[str, float]:
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


# ------------------------------------------------------------------------------------------------------------ the race


@dataclass
class Race:
    """All commands that ran. `single` are our courses graded with one worker, with the output of the command."""

    students: list[str]
    runs: dict[str, list[Run]]
    cores: list[Watched] = field(default_factory=list)
    single: list[tuple[Path, Watched]] = field(default_factory=list)
    otter: dict[str, dict[str, float]] = field(default_factory=dict)
    """Points by student and check."""
    call_s: float = float("inf")


def race(folder: Path, handed_in: Class, others: dict[str, int], quick: bool) -> Race:
    """Run all commands and compare the points. `others` are numbers of submissions for stock and otter."""
    ran = Race(list(handed_in), {kind: [] for kind in ROUND})
    chosen = {kind: _some(ran.students, count) for kind, count in others.items()}
    if chosen["otter"] and not importlib.util.find_spec("otter"):
        raise SystemExit(
            "otter-grader is not installed: pip install 'inference-autograder[benchmarks]', or take --otter 0."
        )
    our_course(folder / "ours", handed_in)
    for kind, make in (("stock", stock_course), ("otter", otter_course)):
        if chosen[kind]:
            make(folder / kind, {each: handed_in[each] for each in chosen[kind]})
    for number, kind in enumerate(ROUND if quick else ROUND + ROUND[::-1]):
        half = "*" if quick else "a*" if number < len(ROUND) else "b*"
        if kind in chosen and not (part := [each for each in chosen[kind] if fnmatch(each, half)]):
            continue
        if kind == "stock":
            run = grade_stock(folder / "stock", half, len(part))
        elif kind == "otter":
            run, points = grade_otter(folder / "otter", part)
            ran.otter |= points
        else:
            ours = folder / f"ours-{number}"
            shutil.copytree(folder / "ours", ours)
            run, output = grade_ours(ours, len(handed_in), 1 if kind == "one" else CORES)
            if kind == "one":
                ran.call_s = min(ran.call_s, call_seconds())
                ran.single.append((ours, output))
            else:
                ran.cores.append(output)
        ran.runs[kind].append(run)
        text = f"{run.count} submissions in {run.seconds:.1f} s, {run.warm_up_s:.1f} s of it before the first"
        print(f"{kind:>5}: {text}", flush=True)
    if found := list(disagreements(ran, folder / "stock")):
        raise SystemExit("We do not all give the same points:\n" + "\n".join(found))
    return ran


def _some(students: list[str], count: int) -> list[str]:
    """About `count` of them, from both halves of the class."""
    step = max(1.0, len(students) / count) if count else float("inf")
    return [
        student
        for number, student in enumerate(students)
        if int(number / step) != int((number - 1) / step) or not number
    ][:count]


def disagreements(ran: Race, stock: Path) -> Iterator[str]:
    """Where somebody gave other points than we did."""
    most = {check.name: float(check.points) for check in suite.load_assignment(NAME).checks}
    recorded = gradebook.recorded(stock, NAME) if stock.is_dir() else {}
    theirs = {"stock": {student: book.points for student, book in recorded.items()}}
    theirs["otter"] = {student: dict(points) for student, points in ran.otter.items()}
    for who, given in theirs.items():
        for student, points in given.items():
            findings = stored(ran.single[-1][0], student).findings
            ours = {each.check: most[each.check] if each.outcome is Outcome.PASSED else 0.0 for each in findings}
            if different := sorted(name for name in most if ours.get(name) != points.get(name)):
                yield f"{student}: {who} differs in {different}"


def figures_of(ran: Race, count: int) -> dict[str, Any]:
    """What the race comes to, for a class of `count`."""
    groups = {kind: group for kind, group in ran.runs.items() if group}
    took = {kind: statistics.mean(run.projected(count) for run in group) for kind, group in groups.items()}
    after = {
        kind: statistics.mean((run.seconds - run.warm_up_s) / run.count for run in group)
        for kind, group in groups.items()
    }
    spent = [each for ours, output in ran.single for each in shares(ours, ran.students, output, ran.call_s)]
    overheads = [sum(seconds for what, seconds in each.items() if what != "checks") for each in spent]
    calls = [stored(ours, student).times["calls"] for ours, _ in ran.single for student in ran.students]
    cpu_s = {kind: statistics.mean(run.cpu_s / run.count for run in group) for kind, group in groups.items()}
    # nbgrader works on one submission at a time, so where no other program runs it cannot be faster than its CPU time
    idle = {kind: cpu_s[kind] / workers for kind, workers in (("stock", 1), ("otter", CORES)) if kind in cpu_s}
    return {
        "cpu_s_per_submission": cpu_s,
        **{f"ratio_vs_{kind}_by_cpu_time": seconds / (cpu_s["cores"] / CORES) for kind, seconds in idle.items()},
        **{f"ratio_vs_{kind}": took[kind] / took["cores"] for kind in ("stock", "otter") if kind in took},
        **{f"ratio_vs_{kind}_one_worker": took[kind] / took["one"] for kind in ("stock", "otter") if kind in took},
        **{f"ratio_vs_{kind}_after_warm_up": after[kind] / after["cores"] for kind in ("stock", "otter") if kind in took},
        "submissions_per_min": {kind: 60 * count / seconds for kind, seconds in took.items()},
        "overhead_s_median": statistics.median(overheads),
        "overhead_s_most": max(overheads),
        "checks_s_median": statistics.median(each["checks"] for each in spent),
        "shares_s": {what: statistics.median(each[what] for each in spent) for what in spent[0]},
        "calls_median": statistics.median(calls),
        "call_us": ran.call_s * 1e6,
        "warm_up_s": {kind: statistics.mean(run.warm_up_s for run in group) for kind, group in groups.items()},
        "workers": CORES,
        "submissions": count,
        "submissions_run": {kind: sum(run.count for run in group) for kind, group in groups.items()},
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- the scale


def scale(folder: Path, count: int, seed: int) -> dict[str, float]:
    """One class of `count` graded by us with all cores: time, use of the processors, memory."""
    handed_in = submissions(count, COPIES, seed)
    our_course(folder, handed_in)
    run, seen = grade_ours(folder, count, CORES)
    (began,), (entering,) = seen.at(GRADING), seen.at(ENTERING)
    judged = seen.at(f"^grading {NAME}: ")[0]
    kinds = len({json.dumps(answers, sort_keys=True) for answers in handed_in.values()})
    made = {
        "submissions": count,
        "different": kinds,
        "seconds": run.seconds,
        "submissions_per_min": 60 * count / run.seconds,
        "warm_up_s": run.warm_up_s,
        "judging_s": judged - began,
        "entering_s": run.seconds - entering,
        "judging_cpu_share": seen.cpu_s(began, judged) / (judged - began) / CORES,
        "cpu_share": seen.cpu_s() / run.seconds / CORES,
        "peak_memory_mb": seen.peak_bytes() / 1e6,
        "ms_per_submission_after_warm_up": 1000 * (run.seconds - run.warm_up_s) / count,
    }
    print(
        f"{count:6} submissions, {kinds} different: {made['submissions_per_min']:.1f}/min; {made['seconds']:.1f} s (warm-up "
        f"{made['warm_up_s']:.1f}, judging {made['judging_s']:.1f} at {made['judging_cpu_share']:.0%} of {CORES} cores, entering "
        f"{made['entering_s']:.1f}); at most {made['peak_memory_mb']:.0f} MB",
        flush=True,
    )
    return made


def surroundings() -> dict[str, Any]:
    """Where and when it was measured, and how busy the machine was with other things."""
    machine = device.describe()
    return {
        "cpu": machine.cpu,
        "cores": machine.cores,
        "memory_bytes": machine.memory_bytes,
        "python": platform.python_version(),
        "packages": machine.packages,
        "when": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "load_before": os.getloadavg(),
    }


def report(figures: dict[str, Any]) -> None:
    """The figures for people."""
    run = figures["submissions_run"]
    print(f"submissions graded by each, all rounds: {run}; rates are for a class of {figures['submissions']}")
    for what, kind in (
        ("stock nbgrader autograde", "stock"),
        ("otter-grader, a process per core", "otter"),
        ("autograder, one worker", "one"),
        (f"autograder, {figures['workers']} workers", "cores"),
    ):
        if kind not in figures["submissions_per_min"]:
            continue
        ratios = [
            f"{figures[name]:.1f} x {other}"
            for other in ("stock", "otter")
            if (name := f"ratio_vs_{other}" + ("_one_worker" if kind == "one" else "")) in figures
        ]
        text = f", {' and '.join(ratios)}" if kind in ("one", "cores") and ratios else ""
        print(f"{what:33} {figures['submissions_per_min'][kind]:7.1f} submissions/min{text}")
    warm = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in figures["warm_up_s"].items())
    after = ", ".join(
        f"{figures[name]:.1f} x {name.split('_')[2]}" for name in figures if name.endswith("after_warm_up")
    )
    print(f"warm-up, once per command: {warm}; without it on any side: {after}")
    used = ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in figures["cpu_s_per_submission"].items())
    ratios = [f"{figures[name]:.1f} x {name.split('_')[2]}" for name in figures if name.endswith("by_cpu_time")]
    print(f"CPU time per submission: {used}; with all cores to themselves by that: {', '.join(ratios)}")
    print(
        f"overhead per submission: {figures['overhead_s_median']:.3f} s at the median, "
        f"{figures['overhead_s_most']:.3f} s at most, beyond {figures['checks_s_median']:.3f} s of checks "
        f"({figures['calls_median']:.0f} calls of {figures['call_us']:.0f} µs). Medians, one worker:"
    )
    for what, seconds in figures["shares_s"].items():
        print(f"  {what:26} {1000 * seconds:7.1f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few submissions, projected; a minute on two idle cores")
    parser.add_argument("--json", action="store_true", help="the figures as one object on the last line")
    parser.add_argument("--submissions", type=int, default=40, help="size of the class that all grade; 0: none")
    parser.add_argument("--stock", type=int, default=40, help="how many of them stock nbgrader grades (8 s each)")
    parser.add_argument("--otter", type=int, default=40, help="how many of them otter-grader grades")
    parser.add_argument("--scale", type=int, nargs="*", default=[], help="sizes of classes that we alone grade")
    parser.add_argument("--seed", type=int, default=0, help="of the generated classes")
    arguments = parser.parse_args()
    count = arguments.submissions
    if 0 < count < 2:
        parser.error("--submissions must be at least 2: the class is graded in two halves")
    figures: dict[str, Any] = {"machine": surroundings()}
    with tempfile.TemporaryDirectory(prefix="throughput-") as folder:
        if count:
            handed_in = submissions(min(count, QUICK) if arguments.quick else count, seed=arguments.seed)
            most = QUICK_OTHERS if arguments.quick else len(handed_in)
            others = {"stock": min(arguments.stock, most), "otter": min(arguments.otter, most)}
            figures |= figures_of(race(Path(folder), handed_in, others, arguments.quick), count)
            report(figures)
        figures["scale"] = [scale(Path(folder, f"scale-{size}"), size, arguments.seed) for size in arguments.scale]
    figures["machine"]["load_after"] = os.getloadavg()
    if arguments.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()

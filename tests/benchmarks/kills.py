"""What `kill -9` costs: nothing. `autograder grade`, killed at random moments, against the same class graded in peace.

    python tests/benchmarks/kills.py [--kills 100] [--submissions 60] [--seed N] [--quick] [--json]
    python tests/benchmarks/kills.py --course FOLDER --assignment NAME --kills 20

A class of right and wrong submissions of kv_cache, or a copy of the course given, is graded without interruption. Another
copy is graded in rounds; a round kills some 20 times (see `AIMS`), each time going on with the same command, then lets one
run finish. After it the copy must be as the first: every row of every table of the gradebook, every result, every file of
the course. No process, mount, socket, shared memory or temporary file may stay, what was stored may not be judged again,
the autograded copies must show the results that are stored, and one more run must find nothing to do.

Temporary folders of killed runs are made to look `temporary.STALE_S` old before that run: younger ones are left alone.
Aims and moments follow from the seed; which system call a kill hits does not. Linux only.
Not compared, as they differ between any two runs: `VOLATILE` and `DRAWN`, and the random ids of nbgrader's rows, which
are replaced by what they stand for.
Not covered: loss of power (the disk's own promises), a child that student code started and somebody else killed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from autograder import grade, results, suite, temporary
from autograder.authoring import corpus
from autograder.courses import course
from autograder.errors import AutograderError
from autograder.pages import feedback
from autograder.runs import grading

NAME = "kv_cache"
AIMS = {
    "judge": "a forked judge",
    "worker": "a worker, its process 1 or its keeper",
    "zygote": "the zygote or its launcher",
    "command": "the process of `autograder grade`, anywhere in the run",
    "tree": "it and all its descendants, anywhere in the run",
    "entering": "it and all its descendants, while nbgrader enters grades",
}
ORDER = ("worker", "tree", "judge", "entering", "zygote", "command", "worker", "entering", "judge", "tree")
"""The share of each aim."""
ROUND = 20
"""Kills after which one run is let to finish, and all is compared."""
SLOW = "test_length_of_huge_limit"
"""Who fails this check uses up time limits."""
VOLATILE = ("seed", "seconds", "times")
"""Of a result: drawn anew, or measured, by every run."""
DRAWN = ("message", "hint", "value", "expected", "printed")
"""Of the finding of a hidden check: tells of inputs that follow from the seed, and how the submission failed on them."""
DUE = "2026-05-01 12:00:00"
LATE, EARLY = "2026-05-01 13:00:00 UTC", "2026-05-01 11:00:00 UTC"
GONE_S = 10.0
"""How long after a kill the rest may take to end; milliseconds on a quiet machine."""
END_S, POLL_S = 900.0, 0.03
CALM = 5
"""How often a run may say that others leave no processor time to grade on."""


@dataclass(frozen=True)
class KillFigures:
    """What was tried and what came of it."""

    seed: int
    submissions: int
    kills: dict[str, int]
    """By aim."""
    survived: int
    """Kills of rounds after which all was as without interruption."""
    runs: int
    """Commands that were started."""
    differences: tuple[str, ...]
    left: tuple[str, ...]
    """What was on the machine and should not have been."""
    seconds: float

    @property
    def fine(self) -> bool:
        return not (self.differences or self.left)


# ---------------------------------------------------------------------------------------------------------- the class


def submissions(count: int, chance: random.Random) -> dict[str, dict[str, str]]:
    """Answers of a class, by student: right and wrong ones in turn, no two alike."""
    entries = [entry for entry in corpus.load(NAME) if SLOW not in entry.fails]
    right = [entry.answers for entry in entries if entry.kind == "right"]
    wrong = [entry.answers for entry in entries if entry.kind == "wrong"]
    chance.shuffle(wrong)
    made = {}
    for number in range(count):
        answers = (right if number % 3 == 0 else wrong)[number // 2 % len(right if number % 3 == 0 else wrong)]
        made[f"student{number:03}"] = {name: f"{source}\n# {number}" for name, source in answers.items()}
    return made


def make_course(folder: Path, count: int, chance: random.Random) -> None:
    """A course with submissions; one in five is late, one in five has no time."""
    course.init(folder, [NAME], course_id="killed")
    with (folder / course.CONFIG).open("a") as file:
        file.write("\nc.LateSubmissionPlugin.penalty_method = 'zero'\n")
    with contextlib.closing(sqlite3.connect(folder / "gradebook.db")) as book, book:
        book.execute("UPDATE assignment SET duedate = ?", (f"{DUE}.000000",))
    release = folder / "release" / NAME / f"{NAME}.ipynb"
    for number, (student, answers) in enumerate(submissions(count, chance).items()):
        notebook = nbformat.read(release, as_version=4)
        for cell in notebook.cells:
            if named := cell.metadata.get("task") or cell.metadata.get("helpers"):
                cell.source = answers[named]
        target = folder / "submitted" / student / NAME
        target.mkdir(parents=True)
        nbformat.write(notebook, target / f"{NAME}.ipynb")
        (target / "notes.txt").write_text(f"Notes of {student}.")
        if number % 5:
            (target / "timestamp.txt").write_text(LATE if number % 5 == 1 else EARLY)


# --------------------------------------------------------------------------------------------------- what is compared


@dataclass(frozen=True)
class State:
    """What a graded course holds, without what differs between any two runs."""

    book: Counter[str]
    """Rows of all tables."""
    results: Counter[str]
    files: Counter[str]

    def differences(self, other: State) -> Iterator[str]:
        """What `other` has more or less of."""
        for what in dataclasses.fields(self):
            mine, theirs = getattr(self, what.name), getattr(other, what.name)
            yield from (f"{what.name}: missing {item[:500]}" for item in (mine - theirs).elements())
            yield from (f"{what.name}: too much {item[:500]}" for item in (theirs - mine).elements())


def state(folder: Path, name: str) -> State:
    """What the course in `folder` holds of assignment `name` now."""
    return State(
        book=Counter(_rows(folder / "gradebook.db")),
        results=Counter(
            f"{path.relative_to(folder)}: {text}"
            for path in (folder / "results" / name).glob("*/*.json")
            for text in _steady(path)
        ),
        files=Counter(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts),
    )


def _steady(path: Path) -> Iterator[str]:
    """A result and each of its findings, without what differs between any two runs."""
    if (result := _load(path)) is None:
        yield "cannot be read"
        return
    yield json.dumps(result.model_dump(mode="json", exclude={*VOLATILE, "findings"}), sort_keys=True)
    for finding in result.findings:
        drawn = DRAWN if finding.hidden else ()
        yield json.dumps(finding.model_dump(mode="json", exclude={"seconds", "measurements", *drawn}), sort_keys=True)


def _load(path: Path) -> results.Result | None:
    with contextlib.suppress(AutograderError):
        return results.load(path)
    return None


def _rows(database: Path) -> Iterator[str]:
    """All rows of all tables. A row of a student's is named by student and assignment instead of its random id."""
    with contextlib.closing(sqlite3.connect(database)) as book:
        book.row_factory = sqlite3.Row
        tables = [row["name"] for row in book.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = {table: [dict(row) for row in book.execute(f"SELECT * FROM {table}")] for table in tables}  # noqa: S608
    names = {}
    for row in rows["submitted_assignment"]:
        names[row["id"]] = f"{row['student_id']}/{row['assignment_id']}"
    for row in rows["submitted_notebook"]:
        names[row["id"]] = f"{names.get(row['assignment_id'])}/{row['notebook_id']}"
    for table in ("grade", "comment"):
        names |= {row["id"]: f"{names.get(row['notebook_id'])}/{row['cell_id']}" for row in rows[table]}
    for table, content in rows.items():
        for row in content:
            yield f"{table} {json.dumps({key: names.get(value, value) for key, value in row.items()}, sort_keys=True)}"


def stale(folder: Path, name: str) -> Iterator[str]:
    """Autograded copies that do not show the stored result."""
    loaded = suite.load(name)
    for path in sorted((folder / "autograded").glob(f"*/{name}/{name}.ipynb")):
        student = path.parts[-3]
        (file,) = (folder / "results" / name / student).glob("*.json")
        if (result := _load(file)) is None:
            continue
        cells = {cell.metadata.get("check"): cell for cell in nbformat.read(path, as_version=4).cells}
        for task in grade.score(loaded.assignment, result.findings).tasks:
            shown = cells[task.task].outputs[0]["data"]
            if shown != {"text/plain": repr(task.points), "text/html": feedback.task_html(result, task)}:
                yield f"autograded: the copy of {student} shows another result of {task.task}"


def settled(folder: Path) -> dict[Path, bytes]:
    """The results that no later run may touch, unless told to."""
    found = {}
    for path in (folder / "results").glob("*/*/*.json"):
        result = _load(path)
        if result and not any(finding.outcome in grading.PASSING for finding in result.findings):
            found[path] = path.read_bytes()
    return found


# ------------------------------------------------------------------------------------------------------- the killing


@dataclass
class Command:
    """A running `autograder grade`, its output read in a thread."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as output:
            for line in output:
                self.lines.append(line)

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    @property
    def entering(self) -> bool:
        return any(line.startswith("entering ") for line in list(self.lines))

    def finish(self) -> tuple[int, str]:
        """Wait for its end: exit status and all that it said."""
        code = self.process.wait(END_S)
        self.reader.join(GONE_S)
        return code, "".join(self.lines)

    def family(self) -> dict[str, list[int]]:
        """Ids of its processes, by aim."""
        children = _children()
        command = self.process.pid
        found: dict[str, list[int]] = {aim: [] for aim in AIMS}
        found["command"] = [command]
        found["tree"] = found["entering"] = [command, *_below(command, children)]
        own = _read(f"/proc/{command}/cmdline")
        for child in children.get(command, []):
            if (line := _read(f"/proc/{child}/cmdline")) == own:
                found["judge"].append(child)
            if b"autograder.worker.zygote" not in line:
                continue
            found["zygote"] += [child, *children.get(child, [])]
            for keeper in (keeper for zygote in children.get(child, []) for keeper in children.get(zygote, [])):
                below = _below(keeper, children)
                if len(below) > 1:  # else it waits for a request
                    found["worker"] += [keeper, *below]
        return found


def _children() -> dict[int, list[int]]:
    """Ids of the children of every process that has some."""
    found: dict[int, list[int]] = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if fields := _read(f"/proc/{entry}/stat").rpartition(b")")[2].split():
            found.setdefault(int(fields[1]), []).append(int(entry))
    return found


def _below(process: int, children: dict[int, list[int]]) -> list[int]:
    """All descendants."""
    direct = children.get(process, [])
    return [*direct, *(each for child in direct for each in _below(child, children))]


def _read(path: str) -> bytes:
    """The file's content; nothing if it is gone."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


@dataclass
class Killer:
    """Grades the course in `folder` and kills what does. `tmp` is the command's folder for temporary files."""

    folder: Path
    name: str
    tmp: Path
    chance: random.Random
    report: Callable[[str], None]
    warm_up_s: float
    """What a run takes before the first submission."""
    runs: int = 0
    command: Command | None = None
    kept: dict[Path, bytes] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def start(self, *arguments: str) -> Command:
        """Start the command."""
        self.runs += 1
        self.kept = {} if "--force" in arguments else settled(self.folder)
        process = subprocess.Popen(
            [sys.executable, "-m", "autograder", "grade", self.name, "--plain", *arguments],
            cwd=self.folder,
            env=os.environ | {"TMPDIR": str(self.tmp)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.command = Command(process)
        return self.command

    def finish(self, *codes: int) -> tuple[int, str]:
        """Wait for the end of the command, whose exit status must be one of `codes`; gives that and what it said."""
        assert self.command
        code, said = self.command.finish()
        self.command = None
        if code not in codes or "Traceback" in said:
            self.complaints.append(f"run {self.runs} ended with {code}: {said[-2000:]}")
        self.complaints += [
            f"run {self.runs} judged again: {path}"
            for path, content in self.kept.items()
            if path.read_bytes() != content
        ]
        return code, said

    def close(self) -> None:
        """End the command, should it still run: we were stopped ourselves."""
        if self.command and self.command.runs:
            os.killpg(self.command.process.pid, signal.SIGKILL)
            self.command.finish()

    def complete(self) -> str:
        """Run the command to its end, after which all must be graded; gives what it said."""
        for _ in range(CALM):
            self.start()
            code, said = self.finish(0, 1)
            if code == 0:
                return said
            if "overloaded" not in said:
                break
        self.complaints.append(f"run {self.runs} ended with {code}: {said[-2000:]}")
        return said

    def kill(self, aim: str) -> None:
        """Kill something of this kind at a random moment; starts the command if it does not run."""
        again = aim != "entering"
        while True:
            if self.command is None:
                # All graded: from the start again. That there is nothing to do without is looked at after each round.
                done = len(settled(self.folder)) == len(list((self.folder / "submitted").iterdir()))
                self.start(*(["--force"] if done and again else []))
            assert self.command
            if (family := self._wait(self.command, aim)) and self._strike(self.command, aim, family):
                return
            if self.command:
                self.finish(0, 1)
            again = True

    def _wait(self, command: Command, aim: str) -> dict[str, list[int]] | None:
        """The processes of the command at a random moment when there are some of the kind; None if it ended before."""
        if aim in ("command", "tree"):
            moment = time.monotonic() + self.chance.uniform(0, 2 * self.warm_up_s)
        else:
            while not (command.entering if aim == "entering" else command.family()[aim]):
                if not command.runs:
                    return None
                time.sleep(POLL_S)
            moment = time.monotonic() + self.chance.uniform(0, 0.7)
        while command.runs:
            family = command.family()
            if time.monotonic() >= moment and family[aim]:
                return family
            time.sleep(min(POLL_S, max(0.001, moment - time.monotonic())))
        return None

    def _strike(self, command: Command, aim: str, family: dict[str, list[int]]) -> bool:
        """Kill one of them, or all; whether there was still one."""
        chosen = family[aim] if aim in ("tree", "entering") else [self.chance.choice(family[aim])]
        hit = [process for process in chosen if _kill(process)]
        if not hit:
            return False
        if aim in ("command", "tree", "entering"):
            self.complaints += [f"{aim} killed: {left} lives on" for left in _alive(family["tree"], GONE_S)]
            if self.finish(-signal.SIGKILL, 0, 1)[0] != -signal.SIGKILL:
                return False  # it had ended by itself in that very moment
        self.report(f"{aim}: {len(hit)} killed {time.monotonic() - command.began:.1f} s into run {self.runs}")
        return True


def _kill(process: int) -> bool:
    try:
        os.kill(process, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _alive(processes: list[int], wait_s: float) -> list[int]:
    """Those that do not end within `wait_s`."""
    end = time.monotonic() + wait_s
    while True:
        states = {process: _read(f"/proc/{process}/stat").rpartition(b")")[2].split()[:1] for process in processes}
        left = [process for process, state in states.items() if state and state != [b"Z"]]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.02)


# --------------------------------------------------------------------------------------------------------- the rounds


def aims(kills: int, chance: random.Random) -> list[list[str]]:
    """What to kill, by round: at last those that need everything to be graded."""
    wanted = [ORDER[number % len(ORDER)] for number in range(kills)]
    rounds = [wanted[first : first + ROUND] for first in range(0, kills, ROUND)]
    for each in rounds:
        chance.shuffle(each)
        each.sort(key=lambda aim: aim == "entering")
    return rounds


def survive(
    kills: int, submissions: int, seed: int, report: Callable[[str], None], given: Path | None = None, name: str = NAME
) -> KillFigures:
    """Grade `submissions` submissions, `kills` times interrupted, and compare with the same without interruption.

    With `given` those of assignment `name` in a copy of the course there, which must not be graded yet.
    """
    began = time.monotonic()
    chance = random.Random(seed)
    tried: Counter[str] = Counter()
    survived = runs = 0
    differences: list[str] = []
    left: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        world = Path(folder)
        (world / "tmp").mkdir()
        if given is None:
            make_course(world / "course", submissions, chance)
        else:
            shutil.copytree(given, world / "course")
            submissions = len(list((world / "course" / "submitted").glob(f"*/{name}")))
        shutil.copytree(world / "course", world / "peace")
        with contextlib.closing(Killer(world / "peace", name, world / "tmp", chance, report, 0.0)) as peace:
            expected, warm_up_s = _in_peace(peace)
        report(f"{submissions} graded without interruption in {time.monotonic() - began:.1f} s")
        for number, wanted in enumerate(aims(kills, chance), 1):
            leftovers = corpus.Leftovers(name, world)
            with contextlib.closing(Killer(world / "course", name, world / "tmp", chance, report, warm_up_s)) as killer:
                for aim in wanted:
                    killer.kill(aim)
                    tried[aim] += 1
                found = [*_complete(killer, expected), *killer.complaints]
            found_left = [*leftovers.found(), *(line for line in _mounts() if str(world) in line)]
            if not found and not found_left:
                survived += len(wanted)
            differences += [f"round {number}: {each}" for each in found]
            left += [f"round {number}: {each}" for each in found_left]
            runs += killer.runs
            report(f"round {number}: {len(found)} differences, {len(found_left)} things left")
    return KillFigures(
        seed=seed,
        submissions=submissions,
        kills=dict(tried),
        survived=survived,
        runs=runs,
        differences=tuple(differences),
        left=tuple(left),
        seconds=round(time.monotonic() - began, 1),
    )


def _in_peace(killer: Killer) -> tuple[State, float]:
    """Grade without a kill: what the course holds then, and the seconds before the first submission was graded."""
    command = killer.start()
    warm_up_s = 0.0
    while command.runs and not any(line.startswith("  1/") for line in list(command.lines)):
        warm_up_s = time.monotonic() - command.began
        time.sleep(POLL_S)
    if killer.finish(0, 1)[0]:
        killer.complete()
    if killer.complaints:
        raise SystemExit("\n".join(killer.complaints))
    return state(killer.folder, killer.name), warm_up_s


def _complete(killer: Killer, expected: State) -> Iterator[str]:
    """Let runs finish: what is not as it must be then."""
    if killer.command:
        killer.finish(0, 1)  # 1: a killed zygote withholds what was not graded yet
    for path in killer.tmp.iterdir():  # a run removes what killed ones left if it comes that much later
        os.utime(path, (time.time() - 2 * temporary.STALE_S,) * 2)
    killer.complete()
    now = state(killer.folder, killer.name)
    yield from expected.differences(now)
    yield from stale(killer.folder, killer.name)
    if "Nothing to do: every submission is graded." not in (said := killer.complete()):
        yield f"the run after it did something: {said[-1000:]}"
    yield from (f"the run after it: {each}" for each in now.differences(state(killer.folder, killer.name)))


def _mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--submissions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--course", type=Path, help="a course with submissions, not graded yet, to make a copy of")
    parser.add_argument("--assignment", default=NAME)
    parser.add_argument("--quick", action="store_true", help="8 kills, 12 submissions")
    parser.add_argument("--json", action="store_true", help="the figures as one object on the last line")
    arguments = parser.parse_args()
    kills, count = (8, 12) if arguments.quick else (arguments.kills, arguments.submissions)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and so clean up
    print(f"seed {arguments.seed}")
    figures = survive(
        kills, count, arguments.seed, lambda line: print(line, flush=True), arguments.course, arguments.assignment
    )
    for each in (*figures.differences, *figures.left):
        print(f"! {each}")
    hit = ", ".join(f"{count} {aim}" for aim, count in sorted(figures.kills.items()))
    print(
        f"{figures.survived} of {sum(figures.kills.values())} kills survived ({hit}) in {figures.runs} runs over "
        f"{figures.submissions} submissions, {figures.seconds:.0f} s"
    )
    if arguments.json:
        print(json.dumps(dataclasses.asdict(figures)))
    sys.exit(0 if figures.fine else 1)


if __name__ == "__main__":
    main()

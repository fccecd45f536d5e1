"""The assignments that need vLLM, graded with vLLM on CUDA, and the headline table: everything that wants a GPU host, in one run.

    PYTHONPATH=. python tests/benchmarks/gpu_vllm.py --out FOLDER [--time 480] [--only 'grade*']

Prints one line of JSON for everything that was found, as soon as it is known, and a summary at the end; the same lines
go to FOLDER/gpu_vllm.jsonl, FOLDER gets at most five files:

    machine    what this is, whether vLLM is one that the course supports, which names of it assignments need and do not find
    grade      one submission: points, checks that did not pass as its head says, checks that were skipped, seconds. Graded are
               the reference, all right and honest submissions, the stub, and wrong ones: for each check that talks to a real vLLM
               one that fails it. In the sandbox, else in plain processes; which of them is in every line
    record     the recording of this version of vLLM that suites replay (`record_vllm.py`): recording.tar.gz
    headline   `headline.py`: its lines, its table, its JSON

Every step is a process of its own with a time limit, so one failure ends nothing else; grades run side by side, each on its share
of the processors, the headline alone. A busy machine can make checks of speed inconclusive; that is said, and is no failure.
Without a GPU the same runs on the CPU, which is how it is tried out. The exit code is 1 if a grade or a step is amiss.

Not covered: nbgrader (none is needed here), hostile submissions, the rest of the wrong ones: `autograder corpus` has them.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import selectors
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NAMES = ("vllm_setup", "batched_inference", "openai_client", "continuous_batching")
LIVE = {
    "vllm_setup": ("test_plan_of_a_real_engine", "test_ask_real_vllm"),
    "batched_inference": ("test_vllm_call", "test_vllm_engine"),
    "openai_client": ("test_chat_with_real_vllm", "test_metrics_of_real_vllm"),
    "continuous_batching": ("test_scheduler_vllm",),
}
"""Checks that talk to a real vLLM, or replay what one did."""
WRONG = 6
"""Wrong submissions of each assignment, the stub included."""
Row = dict[str, Any]
Print = Callable[..., None]


# ------------------------------------------------------------------------------------------------------------ the steps


def machine(say: Print) -> None:
    """What this machine is, and what the installed vLLM lacks."""
    from autograder import suite
    from autograder.authoring import engine
    from gpu_env import device, vllm_engine

    say(machine=device.describe().as_dict(), vllm=vllm_engine.installed(), obstacle=vllm_engine.obstacle())
    assignments = [suite.load_assignment(name) for name in NAMES]
    lost = [f"{each.assignment} needs {each.name}: {each.why}" for each in engine.broken(assignments)]
    unrecorded = [each for each in lost if "Nobody recorded" in each]
    say(lost=[each for each in lost if each not in unrecorded], unrecorded=len(unrecorded))


def chosen(name: str, wrong: int) -> list[Any]:
    """Submissions to grade, the most telling first, in case the time does not suffice for all.

    The reference, the stub, wrong ones that fail a `LIVE` check; the rest that deserve all points, more wrong ones.
    """
    from autograder.authoring import corpus

    entries = corpus.load(name)
    bad = sorted((each for each in entries if each.kind == "wrong" and each.name != "stub"), key=lambda e: len(e.fails))
    picked = [each for each in entries if each.kind == "wrong" and each.name == "stub"]
    for check in LIVE[name]:
        picked += [each for each in bad if check in each.fails and each not in picked][:1]
    picked += [each for each in bad[:: max(1, len(bad) // max(1, wrong))] if each not in picked]
    full = [each for each in entries if each.kind in ("right", "honest")]
    first = 1 + len(LIVE[name])
    return [
        *full[:1],
        *picked[: min(first, wrong)],
        *full[1:],
        *picked[first:wrong],
    ]


def grade(say: Print, name: str, wrong: int, isolations: Iterable[str], workers: int) -> None:
    """Grade submissions of one assignment with its whole suite at the strongest of `isolations` that can be had."""
    from autograder import suite
    from autograder.authoring import corpus
    from autograder.finding import Outcome
    from autograder.grade import Graded
    from autograder.judging import oracle
    from autograder.runs import run
    from autograder.runs.grading import Grader, Job
    from autograder.sandboxing.sandbox import SandboxUnavailable

    loaded = suite.load(name)
    entries = {each.key: each for each in chosen(name, wrong)}
    refused = ""
    for isolation in isolations:
        began = time.monotonic()
        try:
            with contextlib.ExitStack() as stack:
                world = stack.enter_context(corpus.private_world())
                sandbox = stack.enter_context(run.sandbox_for(loaded, run.level_of(isolation)))
                grader = Grader(loaded, sandbox, world / "results", workers=workers)
                grader.warm_up()
                if failed := getattr(sandbox, "preload_failed", None):
                    say(preload_failed=failed, threads=getattr(sandbox, "threads", None))
                warm, started = time.monotonic() - began, time.monotonic()
                used = f"{grader.isolation}; refused: {'; '.join(sandbox.isolation.refused)}"
                say(isolation=used, walls=sandbox.isolation.walls, warm_s=round(warm, 1), submissions=len(entries))

                def done(each: Graded, started: float = started, used: str = grader.isolation) -> None:
                    entry = entries[each.student]
                    findings = each.result.findings if each.result else ()
                    say(
                        submission=each.student,
                        isolation=used,
                        status=each.status,
                        points=each.score.points if each.score else None,
                        expected=corpus.expected_points(entry, loaded.assignment),
                        of=sum(check.points for check in loaded.assignment.checks),
                        at_s=round(time.monotonic() - started, 1),
                        judged_s=round(sum(finding.seconds for finding in findings), 1),
                        complaints=corpus.complaints(entry, each),
                        inconclusive=sorted(corpus.unmeasured(each)),
                        skipped={f.check: f.message for f in findings if f.outcome is Outcome.SKIPPED},
                        broken={f.check: f.message for f in findings if f.outcome is Outcome.BROKEN},
                        live={f.check: [f.outcome, round(f.seconds, 1)] for f in findings if f.check in LIVE[name]},
                        withheld=list(each.score.withheld) if each.score else [each.problem],
                    )

                grader.grade([Job(each.key, each.submission(loaded.manifest)) for each in entries.values()], done)
                say(done=len(entries), seconds=round(time.monotonic() - began, 1))
                oracle.release()
            return
        except SandboxUnavailable as error:
            refused = str(error)
            say(isolation=isolation, unavailable=refused)
    raise RuntimeError(f"no isolation could be had: {refused}")


def record(say: Print, out: Path) -> None:
    """Record what this version of vLLM says, and pack it."""
    from gpu_env import vllm_engine

    folder = HERE.parent / "recordings" / f"vllm-{vllm_engine.installed()}"
    done = subprocess.run([sys.executable, str(HERE / "record_vllm.py")], check=False)
    with tarfile.open(out / "recording.tar.gz", "w:gz") as packed:
        packed.add(folder, arcname=folder.name)
    say(files=sorted(path.name for path in folder.iterdir()))
    if done.returncode:
        raise RuntimeError("not everything could be recorded; the end of log.txt says why")


# ---------------------------------------------------------------------------------------------------------- the driver


@dataclass
class Step:
    """One process: what it runs, how long at most, on which processors."""

    name: str
    command: list[str]
    limit_s: float
    cores: list[int]


def run_steps(steps: list[Step], say: Print, log: Path) -> None:
    """Run `steps` side by side; hand on every line of JSON that they print, and how each ended, with all that it started."""
    running: dict[int, tuple[Step, subprocess.Popen[bytes], float, bytearray]] = {}
    with selectors.DefaultSelector() as selector, log.open("ab") as errors:
        for step in steps:
            process = subprocess.Popen(
                step.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            assert process.stdout
            os.sched_setaffinity(process.pid, step.cores)
            running[process.stdout.fileno()] = (step, process, time.monotonic(), bytearray())
            selector.register(process.stdout, selectors.EVENT_READ)
        while running:
            ready = {key.fd for key, _ in selector.select(timeout=0.5)}
            for fd, (step, process, began, held) in list(running.items()):
                over = time.monotonic() - began > step.limit_s
                data = os.read(fd, 1 << 16) if fd in ready else b""
                held += data
                while b"\n" in held:
                    line, _, rest = bytes(held).partition(b"\n")
                    held[:] = rest
                    with contextlib.suppress(ValueError):
                        found = json.loads(line)
                        if isinstance(found, dict):
                            say(step=step.name, **found)
                if over or (fd in ready and not data):
                    ending = process.poll() if over else _wait(process)
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGTERM if over else signal.SIGKILL)
                    if over:
                        _wait(process)
                        with contextlib.suppress(ProcessLookupError):
                            os.killpg(process.pid, signal.SIGKILL)
                    assert process.stdout
                    selector.unregister(process.stdout)
                    process.stdout.close()
                    del running[fd]
                    code: Any = f"stopped after its limit of {step.limit_s:.0f} s" if over else ending
                    say(step=step.name, ended=code, seconds=round(time.monotonic() - began, 1))


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code, after a moment of patience for servers to be closed."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(12)
    return None


class Report:
    """All lines so far: printed, kept in a file, counted."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._began = time.monotonic()
        self.rows: list[Row] = []

    def __call__(self, **row: Any) -> None:
        row = {"t": round(time.monotonic() - self._began, 1), **row}
        self.rows.append(row)
        line = json.dumps(row, default=str)
        print(line if len(line) < 1500 else line[:1500] + " ...", flush=True)
        with self._file.open("a", encoding="utf-8") as out:
            out.write(line + "\n")

    def summary(self) -> Row:
        """Per assignment how many submissions were graded as they should; steps that did not end well."""
        found: Row = {}
        for name in NAMES:
            rows = [row for row in self.rows if row.get("step") == f"grade {name}" and "submission" in row]
            if rows:
                found[name] = {
                    "graded": len(rows),
                    "as expected": sum(not row["complaints"] for row in rows),
                    "withheld": sum(row["status"] == "withheld" for row in rows),
                    "skipped checks": sorted({check for row in rows for check in row["skipped"]}),
                    "inconclusive": sum(len(row["inconclusive"]) for row in rows),
                    "isolation": sorted({row["isolation"] for row in rows}),
                    "complaints": [text[:300] for row in rows for text in row["complaints"]][:8],
                }
        found["steps amiss"] = {row["step"]: row["ended"] for row in self.rows if row.get("ended", 0) != 0}
        return found


def main() -> int:
    """Run the steps, or be one of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu_vllm"))
    parser.add_argument("--time", type=float, default=480.0, help="seconds for everything")
    parser.add_argument("--only", default="*", help="a pattern of steps: machine, 'grade NAME', record, headline")
    parser.add_argument("--wrong", type=int, default=WRONG, help="wrong submissions of each assignment")
    parser.add_argument("--workers", type=int, default=0, help="submissions at a time in each step; as many as cores")
    parser.add_argument("--isolation", default="sandbox,process", help="tried in this order")
    parser.add_argument("--grade-time", type=float, default=200.0, help="seconds for all grades")
    parser.add_argument("--headline", default="--quick", help="more options for headline.py")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.step:
        return be_step(options)
    began = time.monotonic()
    log = options.out / "log.txt"
    report = Report(options.out / "gpu_vllm.jsonl")
    cores = sorted(os.sched_getaffinity(0))
    wanted = [name for name in NAMES if fnmatch.fnmatch(f"grade {name}", options.only)]
    share = max(1, len(cores) // max(1, len(wanted)))
    shares = [cores[at * share : (at + 1) * share] or cores for at in range(len(wanted))]

    def left(most: float) -> float:
        return float(max(5.0, min(most, options.time - (time.monotonic() - began))))

    def command(*words: str) -> list[str]:
        given = ["--out", str(options.out), "--wrong", str(options.wrong), "--isolation", options.isolation]
        given += ["--workers", str(options.workers)]
        return [sys.executable, __file__, *given, "--step", *words]

    def go(*steps: Step) -> None:
        if some := [step for step in steps if fnmatch.fnmatch(step.name, options.only)]:
            run_steps(some, report, log)

    grades = [
        Step(f"grade {name}", command("grade", name), left(options.grade_time), mine)
        for name, mine in zip(wanted, shares, strict=True)
    ]
    first = Step("machine", command("machine"), left(120), cores)
    recording = Step("record", command("record"), left(options.grade_time), cores)
    if side_by_side := len(cores) >= 2 * len(NAMES):
        go(first, recording, *grades)
    else:  # one server after another, as far as the time goes
        go(first)
        for step in grades:
            step.limit_s, step.cores = left(options.grade_time), cores
            go(step)
    seconds = left(1e9) - 15
    line = [sys.executable, str(HERE / "headline.py"), "--time", f"{seconds:.0f}"]
    line += ["--json", str(options.out / "headline.json"), *options.headline.split()]
    if seconds > 60:
        go(Step("headline", line, seconds + 12, cores))
    if not side_by_side and left(1e9) > 90:
        recording.limit_s = left(1e9)
        go(recording)
    report(summary=report.summary())
    if log.exists():  # the end is what explains
        text = log.read_bytes()[-4_000_000:]
        log.write_bytes(text)
    found = report.summary()
    return int(bool(found["steps amiss"]) or any(found[name]["complaints"] for name in NAMES if name in found))


def be_step(options: argparse.Namespace) -> int:
    """Do one step in this process, findings as lines of JSON on what was standard output, all else on standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(**row: Any) -> None:
        print(json.dumps(row, default=str), file=answers, flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that servers are closed
    what, *rest = options.step
    try:
        if what == "machine":
            machine(say)
        elif what == "record":
            record(say, options.out)
        else:
            workers = options.workers or len(os.sched_getaffinity(0))
            grade(say, rest[0], options.wrong, options.isolation.split(","), workers)
    except Exception as error:
        say(error=f"{type(error).__name__}: {error}"[:1500])
        raise
    return 0


if __name__ == "__main__":
    os.environ.setdefault("TMPDIR", tempfile.gettempdir())
    sys.exit(main())

"""Grading on a Ray cluster of several nodes, which Ray's own utility starts on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from autograder.runs.cluster import ClusterError, RayGrader

if TYPE_CHECKING:
    from conftest import Course, Ran

pytest.importorskip("ray", reason="Ray is not installed: pip install 'inference-autograder[ray]'")

NAP = "import time\ndef double(n):\n    time.sleep(0.5)\n    return n + n"
ANSWERS = {
    "a_nap": {"double": NAP},
    "right": {},
    "wrong": {"double": "def double(n): return n"},
    "big": {"double": "def double(n): return 2 * n if n < 99 else 0"},
    "raises": {"double": "def double(n): raise ValueError(f'not {n}')"},
    "prints": {"double": "def double(n): print('é' * 3, float('nan')); return n + n"},
    "nan": {"layers": "def layers(n): return float('nan')"},
    "dies": {"layers": "import os\ndef layers(n): os.abort()"},
    "syntax": {"double": "def double(n) return"},
    "random": {"double": "import random\ndef double(n): return random.random()"},
    "signal": {"layers": "import signal\ndef layers(n): return sorted(map(int, signal.pthread_sigmask(0, ())))"},
    "threads": {"layers": "import os\ndef layers(n): return [v for k, v in os.environ.items() if 'THREADS' in k]"},
    "argv": {"layers": "import os, sys\ndef layers(n): return sorted(os.environ), sys.flags.safe_path"},
}
"""Submissions, some of which would notice if a node's worker were not like a local one. The first that is judged takes long
enough for another node to come.
"""

LOCALLY = """
import json, sys
from pathlib import Path
from autograder import results, suite
from autograder.runs import run
from autograder.runs.grading import Grader, Job

def bare(result):
    fields = result.model_dump(mode="json", exclude={"seconds", "times"})
    for finding in fields["findings"]:
        del finding["seconds"]
    return repr(fields)  # NaN equals itself

loaded = suite.load("tiny")
then = {file.parent.name: results.load(file) for file in Path("results/tiny").glob("*/*.json")}
jobs = [Job(name, results.kept(Path("results"), result), seed=result.seed) for name, result in then.items()]
now = {}
with run.sandbox_for(loaded, 3) as sandbox:
    grader = Grader(loaded, sandbox, None)
    grader.warm_up()
    grader.grade(jobs, lambda each: now.update({each.student: each.result}))
for name in then:
    if bare(then[name]) != bare(now[name]):
        print(name, bare(then[name]), bare(now[name]), sep="\\n")
print(len(now), "compared")
"""


@dataclass
class Nodes:
    """A running cluster, and how to change it."""

    cluster: Any
    environment: dict[str, str]
    made: list[Any] = field(default_factory=list)

    def add(self, **environment: str) -> Any:
        """One more node, with one processor.

        Each has an address of its own, as on other machines: a command takes the newest one for its own machine.
        """
        node = self.cluster.add_node(
            num_cpus=1,
            object_store_memory=80 << 20,
            env_vars=self.environment | environment,
            node_ip_address=f"127.0.1.{len(self.made) + 1}",
        )
        self.made.append(node)
        return node

    def first_judges(self) -> bool:
        """Whether the oldest node judges a submission now: its process has forked."""
        raylet = psutil.Process(self.made[0].all_processes["raylet"][0].process.pid)
        ours = 0
        for each in raylet.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                ours += each.cmdline()[-3:] == ["-m", "autograder", "node"]
        return ours > 1

    def kill_first(self) -> None:
        """SIGKILL for all that makes up the oldest node."""
        self.cluster.remove_node(self.made[0], allow_graceful=False)

    def grade(self, course: Course, *more: str) -> Ran:
        """`autograder grade --executor ray`, which must do without a traceback."""
        return course.grade(*self.arguments(*more))

    def arguments(self, *more: str) -> tuple[str, ...]:
        return ("--executor", "ray", "--address", self.cluster.address, "--plain", *more)


@pytest.fixture(scope="module")
def nodes(tiny: Course) -> Iterator[Nodes]:
    """A head that does no work and two nodes with the suite of the small assignment."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # a short name, for sockets
        os.makedirs(f"{folder}/ray")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_TMPDIR", folder)
            patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
            head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False, "no_monitor": True}
            cluster: Any = Cluster(initialize_head=True, head_node_args=head)
            try:
                made = Nodes(cluster, tiny.environment)
                made.add()
                made.add()
                yield made
            finally:
                cluster.shutdown()


def test_two_nodes_find_what_this_machine_finds(nodes: Nodes, course: Course) -> None:
    """Submissions judged on two nodes have, for the same seeds, the results of a local run but for times."""
    for student, answers in ANSWERS.items():
        course.solve(student, **answers)
    ran = nodes.grade(course, "--force")
    assert ran.code == 0, ran.said
    assert "(level 3) on 2 nodes" in ran.said
    assert len(course.results()) == len(ANSWERS)
    assert course.total("right") == 10
    assert course.total("wrong") == 5
    local = course.run(sys.executable, "-c", LOCALLY)
    assert local.said == f"{len(ANSWERS)} compared\n"
    again = nodes.grade(course)
    assert "Nothing to do" in again.said


def test_ctrl_c_finishes_what_runs(nodes: Nodes, course: Course, wait_for: Callable[..., None]) -> None:
    """After Ctrl-C the nodes end what they judge and begin nothing; the next run, here a local one, does the rest."""
    for number in range(12):
        course.solve(f"student{number:02}", double=NAP)
    process = course.start(sys.executable, "-m", "autograder", "grade", "tiny", *nodes.arguments())
    wait_for(process, course.results)
    process.send_signal(signal.SIGINT)
    ran = course.finish(process)
    assert ran.code == 130, ran.said
    assert "Finishing what runs." in ran.said
    finished = len(course.results())
    assert 1 <= finished < 12
    assert f"Stopped; {12 - finished} submissions wait to be graded" in ran.said
    again = course.grade("--no-import")
    assert f"{12 - finished} graded now, {finished} before" in again.said


def test_a_node_with_other_checks_is_refused_by_name(nodes: Nodes, course: Course, tmp_path: Path) -> None:
    """Where the suite differs in one byte nothing is judged, and each node is named; one with the right suite does the work."""
    other = tmp_path / "other"
    shutil.copytree(course.environment["AUTOGRADER_REPOSITORY"], other)
    hidden = other / "tests" / "grading" / "tiny" / "test_hidden.py"
    hidden.write_text(hidden.read_text() + "\n")
    course.environment = {"AUTOGRADER_REPOSITORY": str(other)}
    for number in range(3):
        course.solve(f"student{number}")
    wrong = [f"({node.node_id[:8]}) is refused: it has other checks (suite " for node in nodes.made]
    alone = nodes.grade(course, "--no-import")
    assert alone.code == 1
    assert "No node of the Ray cluster can grade tiny." in alone.said
    assert any(each in alone.said for each in wrong)
    assert not course.results()
    right = nodes.add(**course.environment)
    ran = nodes.grade(course, "--no-import")
    assert ran.code == 0, ran.said
    assert len(course.results()) == 3
    assert right.node_id[:8] not in ran.said


def test_a_killed_node_loses_nothing(nodes: Nodes, course: Course, wait_for: Callable[..., None]) -> None:
    """A node dies with what it judged and another one comes: every submission has its result, and the command says so."""
    students = [f"student{number}" for number in range(10, 24)]
    for student in students:
        course.solve(student, double=NAP)
    process = course.start(sys.executable, "-m", "autograder", "grade", "tiny", *nodes.arguments("--no-import"))
    wait_for(process, nodes.first_judges)
    nodes.kill_first()
    nodes.add()
    ran = course.finish(process)
    assert ran.code == 0, ran.said
    assert ran.said.count("Lost the node ") == 1
    assert [file.parent.name for file in course.results()] == students
    assert all(json.loads(file.read_bytes())["times"]["tries"] == 1 for file in course.results())


def test_what_cannot_be_is_said(course: Course, tmp_path: Path) -> None:
    """A cluster that is not there is a sentence; student code without walls never gets near a cluster."""
    course.solve("ada")
    ran = course.grade("--executor", "ray", "--address", "127.0.0.1:1")
    assert ran.code == 1
    assert "There is no Ray cluster at 127.0.0.1:1" in ran.said
    with pytest.raises(ClusterError, match="needs walls"):
        RayGrader(None, None, tmp_path, 0, print)  # type: ignore[arg-type]

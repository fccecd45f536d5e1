"""Grade on a Ray cluster: the work of `grading.Grader`, spread over machines. No scheduler of our own.

On each node one actor (on a node with GPUs, if speed is measured on them, one for each GPU) holds the processors and starts
`autograder.runs.node`, a clean process that judges. Submissions and results travel as bytes of JSON: no file system is shared,
and nothing that student code touched is unpickled. Results are checked, signed and stored here.

Covered: nodes that come, go or die at any time, where what they held is judged elsewhere; nodes with other checks, another
version, other models or less isolation than demanded, which are refused by name; a submission whose nodes keep dying.
Not covered: Ray's own security: whoever reaches the ports of a cluster without authentication is its master, so student
code must not (walls are demanded) and nobody else should; Ray Client (`ray://`): run the command on a machine of the cluster.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autograder import results, suite
from autograder.errors import AutograderError
from autograder.grade import Graded
from autograder.results import Result
from autograder.runs.grading import Job, first_interrupt, graded_as, model_hashes, store
from autograder.runs.node import Judged, Line, Order, Ready, Setup
from autograder.runs.progress import Activity
from autograder.suite import Suite

if TYPE_CHECKING:
    from autograder.signing import SigningKey

__all__ = ["ClusterError", "NodeActor", "RayGrader", "connected", "has_gpus"]

ANSWER_S = 1.0
"""How long a node's actor waits for something to say before it says nothing."""
LOOK_S = 1.0
"""How often the cluster is asked for its nodes."""
AGAIN_S = 20.0
"""How long a node that was lost is left alone: Ray may take so long to see that it is dead."""
ALONE_S = 60.0
"""How long the run waits for a node when there is none that could do its work."""
DEATHS = 3
"""How often a node may lose its judging process, and a submission its node."""
CONNECT_S = 10.0
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class ClusterError(AutograderError):
    """The cluster cannot grade. Says why and what next; results that were stored stay."""


class NodeActor:
    """What runs inside Ray on a node: it carries lines to and from a judging process, and reads none of them."""

    def __init__(self, setup: bytes) -> None:
        # Ray's own settings are none of a judge's business; it would set as many threads as the actor has processors.
        kept = {name: value for name, value in os.environ.items() if name not in THREADS and name[:4] != "RAY_"}
        if not kept.get("CUDA_VISIBLE_DEVICES"):  # so does Ray hide GPUs from who asked for none
            kept.pop("CUDA_VISIBLE_DEVICES", None)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "autograder", "node"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=kept, start_new_session=True,
        )  # fmt: skip
        self._said: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._tell(setup)

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._said.put(line)
        code = self._process.wait()
        self._errors.seek(0)
        last = self._errors.read()[-2000:].decode(errors="replace").strip()
        self._said.put(Line(ended=f"exit code {code}. {last}").line())

    def _tell(self, lines: bytes) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # its last line says why
            self._process.stdin.write(lines)
            self._process.stdin.flush()

    def exchange(self, lines: bytes) -> bytes:
        """Pass `lines` on; gives those that have come, after some time none."""
        if lines:
            self._tell(lines)
        said = []
        with contextlib.suppress(queue.Empty):
            said.append(self._said.get(timeout=ANSWER_S))
            while True:
                said.append(self._said.get_nowait())
        return b"".join(said)


@dataclass
class _Held:
    """A job that some node is to do."""

    job: Job
    lost: int = 0
    """How many nodes it was lost with."""


@dataclass
class _Node:
    """An actor, as seen from here."""

    key: tuple[str, int]
    name: str
    actor: Any
    workers: int
    reply: Any = None
    """The answer that is waited for."""
    ready: Ready | None = None
    held: dict[str, _Held] = field(default_factory=dict)
    stopped: bool = False
    doing: tuple[Activity, ...] = ()
    told: float = 0.0
    """When it said what it does."""


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected to the cluster at `address`, to the one of this machine, or to a new one of this machine.

    Raises `ClusterError`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # grading tells nobody about itself
    try:
        import ray
    except ImportError as error:
        remedy = "Install it here and on every node: pip install 'inference-autograder[ray]'."
        raise ClusterError(f"Ray cannot be imported ({error}). {remedy}") from None
    try:
        host, _, port = (address or os.environ.get("RAY_ADDRESS", "")).rpartition(":")
        if host:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()  # Ray itself tries for minutes
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ClusterError(
            f"There is no Ray cluster at {address or 'this machine'}: {why}. `ray status` tells of one; run this command "
            "on one of its machines."
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def has_gpus(ray: Any) -> bool:
    """Whether some node of the cluster has a GPU."""
    return any(node["Alive"] and node["Resources"].get("GPU", 0) >= 1 for node in ray.nodes())


@dataclass
class RayGrader:
    """Grades submissions of one suite on the nodes of a cluster. Results are stored here, under `folder`.

    `workers` submissions at once on each node, as many as it has processors for 0; `say` gets a line when a node is
    refused, lost or waited for.
    """

    ray: Any
    suite: Suite
    folder: Path
    minimum_level: int
    say: Callable[[str], None]
    workers: int = 0
    tier: str = "cpu"
    signing_key: SigningKey | None = None
    stopping: bool = False
    tick: Callable[[], None] = field(default=lambda: None)

    def __post_init__(self) -> None:
        if self.minimum_level < 1:
            raise ClusterError(
                "On a cluster student code needs walls: without them it could reach Ray, which obeys everybody. "
                "Use --isolation landlock or sandbox, or grade without --executor ray."
            )
        self._nodes: list[_Node] = []
        self._refused: dict[tuple[str, int], str] = {}
        self._deaths: Counter[tuple[str, int]] = Counter()
        self._again: dict[tuple[str, int], float] = {}
        self._used: dict[str, set[str]] = {}
        self._models = model_hashes(self.suite.assignment)
        self._looked = -LOOK_S
        self._alone_since: float | None = None

    @property
    def isolation(self) -> str:
        """The isolation in force, in words, with the number of nodes that have it."""
        return ", ".join(f"{words} on {len(names)} nodes" for words, names in sorted(self._used.items()))

    def warm_up(self) -> None:
        """Wait until one node is ready. Raises `ClusterError` if there will be none."""
        with first_interrupt(self.stop):
            while not self.stopping and not any(node.ready for node in self._nodes):
                self._step(deque(), lambda each: None)

    def stop(self) -> None:
        """Start no further job."""
        self.stopping = True

    def grade(self, jobs: Iterable[Job], done: Callable[[Graded], None]) -> None:
        """Judge `jobs`; `done` is called with each as it ends, its result stored. As `Grader.grade`.

        Raises `StoreError`, and `ClusterError` if no node is left and none comes.
        """
        waiting = deque(_Held(job) for job in jobs)
        with first_interrupt(self.stop):
            while any(node.held for node in self._nodes) or (waiting and not self.stopping):
                self._step(waiting, done)

    def activities(self) -> list[Activity]:
        """What each worker of each node does now, as far as it has said so."""
        now, found = time.monotonic(), []
        for node in self._nodes:
            for each in node.doing:
                if each.student in node.held:
                    seconds = each.seconds + now - node.told
                    found.append(Activity(f"{node.name} {each.worker}", each.student, each.check, seconds))
        return found

    def watch(self, tick: Callable[[], None]) -> None:
        """Have `tick` called a few times per second while jobs run."""
        self.tick = tick

    def close(self) -> None:
        """End all actors. What still runs there is ended too."""
        for node in self._nodes:
            self._kill(node)
        self._nodes.clear()

    def _step(self, waiting: deque[_Held], done: Callable[[Graded], None]) -> None:
        """Look for nodes, send what they can take, and hear what they say."""
        self.tick()
        if not self.stopping and time.monotonic() - self._looked >= LOOK_S:
            self._recruit()
            self._looked = time.monotonic()
        for node in self._nodes:
            self._send(node, waiting)
        replies = {node.reply: node for node in self._nodes if node.reply is not None}
        if not replies:
            time.sleep(0.1)
            return
        for reply in self.ray.wait(list(replies), num_returns=len(replies), timeout=0.1)[0]:
            node = replies[reply]
            node.reply = None
            try:
                lines = self.ray.get(reply).splitlines()
            except self.ray.exceptions.RayError as error:
                self._lost(node, str(error).splitlines()[0], waiting, done)
                continue
            for line in map(Line.model_validate_json, lines):
                if node in self._nodes:
                    self._hear(node, line, waiting, done)

    def _recruit(self) -> None:
        """An actor on every node of the cluster that has none. Raises `ClusterError` if nobody can do the work."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        known = {node.key for node in self._nodes}
        for info in self.ray.nodes():
            processors, gpus = (int(info["Resources"].get(kind, 0)) for kind in ("CPU", "GPU"))
            parts = gpus if self.tier == "gpu" else 1
            workers = self.workers or processors // max(parts, 1)
            for part in range(parts if info["Alive"] and processors else 0):
                key = (info["NodeID"], part)
                if key in known or key in self._refused or time.monotonic() < self._again.get(key, 0.0):
                    continue
                workers = max(1, min(workers, processors))
                setup = Setup(
                    assignment=self.suite.assignment.name, minimum_level=self.minimum_level, tier=self.tier,
                    workers=workers, part=part, parts=parts,
                )  # fmt: skip
                actor = self.ray.remote(NodeActor).options(
                    num_cpus=workers, num_gpus=1 if self.tier == "gpu" else 0, max_restarts=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(info["NodeID"], soft=False),
                ).remote(setup.line())  # fmt: skip
                name = f"{info['NodeManagerHostname']} ({info['NodeID'][:8]}{f', GPU {part}' if parts > 1 else ''})"
                self._nodes.append(_Node(key, name, actor, workers, reply=actor.exchange.remote(b"")))
        self._complain()

    def _complain(self) -> None:
        """Raise `ClusterError` if no node is left and none came in time; say so when none has a processor free."""
        if any(node.ready for node in self._nodes):
            self._alone_since = None
            return
        self._alone_since = self._alone_since or time.monotonic()
        alone_s = time.monotonic() - self._alone_since
        if self._nodes:
            if alone_s > ALONE_S:
                names = ", ".join(node.name for node in self._nodes)
                self.say(f"Still waiting for {names}: starting, or busy with other work (`ray status` tells).")
                self._alone_since = time.monotonic()
        elif self._refused or alone_s > ALONE_S:
            why = (
                " ".join(self._refused.values()) or f"It has no node with {'a GPU' if self.tier == 'gpu' else 'CPUs'}."
            )
            raise ClusterError(
                f"No node of the Ray cluster can grade {self.suite.assignment.name}. {why} Mend that, then run the same "
                "command again: what was finished is kept."
            )

    def _send(self, node: _Node, waiting: deque[_Held]) -> None:
        """Ask a node that is silent, with some new work or the order to stop."""
        if node.reply is not None:
            return
        lines = b""
        if self.stopping and node.held and not node.stopped:
            lines, node.stopped = Order(job=None).line(), True
        while waiting and not self.stopping and node.ready and len(node.held) <= node.workers:
            held = waiting.popleft()
            node.held[held.job.student] = held
            lines += Order(job=held.job).line()
        if node.held or not node.ready:
            node.reply = node.actor.exchange.remote(lines)

    def _hear(self, node: _Node, line: Line, waiting: deque[_Held], done: Callable[[Graded], None]) -> None:
        if line.ready:
            node.ready = line.ready
            if why := self._unfit(line.ready):
                self._refuse(node, why, waiting)
            else:
                used = line.ready.isolation
                self._used.setdefault(f"{used.name} (level {used.level})", set()).add(node.name)
        elif line.refused:
            self._refuse(node, line.refused, waiting)
        elif line.ended:
            if self.stopping and node.stopped:
                node.held.clear()  # they wait for the next run
                self._nodes.remove(node)
            else:
                self._lost(node, f"its judging process ended with {line.ended}", waiting, done)
        elif line.doing is not None:
            node.doing, node.told = line.doing, time.monotonic()
        elif line.judged:
            self._take(node, line.judged, waiting, done)

    def _unfit(self, ready: Ready) -> str:
        """Why a node's results could not stand beside those of the others, if they could not."""
        if ready.suite_hash != self.suite.hash:
            return (
                f"it has other checks (suite {ready.suite_hash[:12]}, not {self.suite.hash[:12]}): update its checkout."
            )
        if ready.framework != suite.version():
            return f"it has version {ready.framework} of the autograder, not {suite.version()}: update it."
        if ready.isolation.level < self.minimum_level:
            return f"its isolation is {ready.isolation.name} (level {ready.isolation.level}), below what is demanded."
        if ready.tier != self.tier:
            return f"speed would be measured on its {ready.tier}, not on a {self.tier}: `autograder doctor` there says why."
        wrong = [name for name, digest in self._models.items() if ready.models.get(name) != digest]
        if wrong:
            return f"{', '.join(wrong)} is missing there, or another one: `autograder models fetch`."
        return ""

    def _take(self, node: _Node, judged: Judged, waiting: deque[_Held], done: Callable[[Graded], None]) -> None:
        """Store what a node found out about a job."""
        held = node.held.pop(judged.student, None)
        if held is None:
            return self._refuse(node, f"it judged {judged.student!r}, which nobody asked it to.", waiting)
        if not judged.result:
            return done(Graded(judged.student, None, None, judged.problem))
        result = Result.model_validate_json(judged.result)
        if not self._answers(held.job, node, result):
            node.held[judged.student] = held
            return self._refuse(node, f"its result for {judged.student!r} is of something else.", waiting)
        store(self.suite, self.folder, held.job, result, self.signing_key)
        done(graded_as(self.suite, result, fresh=True))

    def _answers(self, job: Job, node: _Node, result: Result) -> bool:
        """Whether `result` is of `job`, under what is demanded."""
        assert job.submission
        assert node.ready
        return (
            (result.assignment, result.student, result.tier) == (self.suite.assignment.name, job.student, self.tier)
            and (result.suite_hash, result.framework) == (self.suite.hash, suite.version())
            and result.submission_hash == job.submission.hash
            and result.submission_copy == results.copy_of(job.submission)[0]
            and (result.withheld, result.remarks) == (job.submission.review, job.submission.remarks)
            and result.isolation == node.ready.isolation
            and (job.seed is None or result.seed == job.seed)
        )

    def _refuse(self, node: _Node, why: str, waiting: deque[_Held]) -> None:
        """Have nothing more to do with a node; others judge what it held."""
        self._refused[node.key] = f"The node {node.name} is refused: {why}"
        self.say(self._refused[node.key])
        waiting.extendleft(node.held.values())
        self._drop(node)

    def _lost(self, node: _Node, why: str, waiting: deque[_Held], done: Callable[[Graded], None]) -> None:
        """A node is gone, or its judging process: others judge what it held."""
        self._deaths[node.key] += 1
        self.say(f"Lost the node {node.name}; {len(node.held)} submissions go to others: {why}")
        self._again[node.key] = time.monotonic() + AGAIN_S
        if self._deaths[node.key] >= DEATHS:
            self._refused[node.key] = f"The node {node.name} was lost {DEATHS} times: {why}"
        for held in list(node.held.values()):
            held.lost += 1
            if held.lost < DEATHS:
                waiting.appendleft(held)
            else:
                why = f"{held.lost} nodes were lost while they judged it; the last one said: {why}"
                done(Graded(held.job.student, None, None, f"{why} Grade it alone, without --executor ray."))
        self._drop(node)

    def _drop(self, node: _Node) -> None:
        node.held.clear()
        self._nodes.remove(node)
        self._kill(node)

    def _kill(self, node: _Node) -> None:
        with contextlib.suppress(Exception):  # Ray may be gone already
            self.ray.kill(node.actor, no_restart=True)

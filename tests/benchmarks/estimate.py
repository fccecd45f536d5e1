"""What a class of 10,000 would take: measured costs per submission, and a Ray cluster of 1, 2 and 4 nodes on this machine.

    python tests/benchmarks/estimate.py [--json] [--submissions 40] [--nodes 1 2 4] [--class-size 10000]

A generated class of `kv_cache` is graded locally with all cores, then by `--executor ray` on clusters that Ray's own utility
starts here, of nodes with one processor each. Four such nodes on two processors cannot be faster than two: they show what a
node costs, not what it brings. The command looks at its nodes ten times a second, so its CPU time per submission is too high
where few are judged per second.

The estimate multiplies costs in CPU time, which hardly depends on what else runs, and adds what cannot be shared:

    judging   class x CPU time of a judge with its workers / all processors of all nodes, on processors like those here
    driver    class x CPU time of the command itself (sends, checks, stores): one processor, beside judging
    entering  class x CPU time of nbgrader's autograde / processes of the driver's machine that enter, after judging
    network   class x bytes of a job and its result, at 1 Gbit/s

Not covered: nodes unlike this machine, latency (a node always holds one submission more than it judges), SQLite's one writer
on a slow disk, performance checks, which take seconds of one device each whatever the number of processors.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from generated_class import NAME, our_course, submissions  # type: ignore[import-not-found]
from throughput import ENTERING, GRADING, surroundings  # type: ignore[import-not-found]
from watched import CORES, Watched, watch  # type: ignore[import-not-found]

from autograder import results, suite
from autograder.runs import run
from autograder.runs.grading import discover
from autograder.runs.node import Order

NETWORK_BYTES_S = 1e9 / 8
FLEETS = ((1, CORES), (1, 16), (4, 16), (10, 16))
"""Machines, and processors of each, of the table."""


def local(folder: Path, count: int) -> dict[str, float]:
    """Costs per submission of a local run, in CPU time and bytes."""
    seen = watch("-m", "autograder", "grade", NAME, "--plain", cwd=folder)
    (began,), (entering,) = seen.at(GRADING), seen.at(ENTERING)
    judged = seen.at(f"^grading {NAME}: ")[0]
    loaded = suite.load(NAME)
    jobs = discover(folder / "submitted", NAME, loaded.manifest)
    stored = [results.load(path) for path in (folder / "results" / NAME).glob("*/*.json")]
    calls = [each.times["calls"] for each in stored if each]
    return {
        "warm_up_cpu_s": seen.cpu_s(0.0, began),
        "judging_cpu_s": seen.cpu_s(began, judged) / count,
        "judging_wall_s": (judged - began) / count,
        "entering_cpu_s": seen.cpu_s(entering) / count,
        "entering_wall_s": (seen.seconds - entering) / count,
        "wire_messages": statistics.median(calls),
        "job_bytes": statistics.median(len(Order(job=job).line()) for job in jobs),
        "result_bytes": statistics.median(len(results.content_of(each)) for each in stored if each),
    }


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """A cluster of so many nodes with one processor each, and a head that does no work; gives its address."""
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        os.environ |= {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        head = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False, "no_monitor": True}
        made: Any = Cluster(initialize_head=True, head_node_args=head)
        try:
            for number in range(nodes):
                made.add_node(num_cpus=1, object_store_memory=80 << 20, node_ip_address=f"127.0.1.{number + 1}")
            yield made.address
        finally:
            made.shutdown()


def on_ray(folder: Path, count: int, nodes: int) -> dict[str, float]:
    """The same class on a cluster: wall time from the first to the last result, and CPU time of the driver."""
    with cluster(nodes) as address:
        command = (
            "-m",
            "autograder",
            "grade",
            NAME,
            "--plain",
            "--no-import",
            "--executor",
            "ray",
            "--address",
            address,
        )
        seen = watch(*command, cwd=folder)
    (began,), judged = seen.at(GRADING), seen.at(f"^grading {NAME}: ")[0]
    return {
        "nodes": nodes,
        "seconds": seen.seconds,
        "warm_up_s": began,
        "judging_s": judged - began,
        "submissions_per_min": 60 * count / (judged - began),
        "driver_cpu_s": seen.cpu_s(began, judged) / count,
        "steady_per_min": _steady(seen),
    }


def _steady(seen: Watched) -> float:
    """Submissions per minute between the first result and the last one."""
    at: list[float] = seen.at(r"^\s+\d+/\d+ \w+: ")
    return 60 * (len(at) - 1) / (at[-1] - at[0])


def estimate(costs: dict[str, float], driver_cpu_s: float, count: int) -> list[dict[str, float]]:
    """Hours for a class of `count` on several fleets."""
    table = []
    for machines, cores in FLEETS:
        judging = costs["judging_cpu_s"] * count / (machines * cores)
        driver = driver_cpu_s * count if machines > 1 else 0.0
        network = (costs["job_bytes"] + costs["result_bytes"]) * count / NETWORK_BYTES_S if machines > 1 else 0.0
        entering = costs["entering_cpu_s"] * count / min(cores, run.ENTERING)
        total = max(judging, driver, network) + entering
        table.append(
            {"machines": machines, "cores": cores, "judging_h": judging / 3600, "driver_h": driver / 3600,
             "network_h": network / 3600, "entering_h": entering / 3600, "total_h": total / 3600}
        )  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="the figures as one object on the last line")
    parser.add_argument("--submissions", type=int, default=40, help="size of the class that is measured")
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 4], help="sizes of the clusters")
    parser.add_argument("--class-size", type=int, default=10_000, help="size of the class that is estimated")
    arguments = parser.parse_args()
    count = arguments.submissions
    found: dict[str, Any] = {"machine": surroundings(), "submissions": count}
    with tempfile.TemporaryDirectory(prefix="estimate-") as name:
        folder = Path(name)
        our_course(folder / "course", submissions(count))
        shutil.copytree(folder / "course", folder / "local")
        found["costs"] = costs = local(folder / "local", count)
        for what, value in costs.items():
            print(f"  {what:16} {value:10.3f}{'' if what.startswith('warm') else ' per submission'}", flush=True)
        found["ray"] = []
        for nodes in arguments.nodes:
            shutil.copytree(folder / "course", folder / f"ray-{nodes}")
            found["ray"].append(one := on_ray(folder / f"ray-{nodes}", count, nodes))
            print(
                f"Ray, {nodes} nodes of one processor on {CORES} processors: {one['submissions_per_min']:.1f} submissions/min, "
                f"{one['steady_per_min']:.1f} from the first result on; driver {1000 * one['driver_cpu_s']:.1f} ms each",
                flush=True,
            )
    driver_cpu_s = statistics.median(one["driver_cpu_s"] for one in found["ray"]) if found["ray"] else 0.0
    found["estimate"] = estimate(costs, driver_cpu_s, arguments.class_size)
    print(f"{arguments.class_size} submissions, on paper, processors like these and idle:")
    for row in found["estimate"]:
        print(
            f"  {row['machines']:3} x {row['cores']:2} processors: {row['total_h']:6.2f} h (judging {row['judging_h']:.2f}, "
            f"driver {row['driver_h']:.2f}, network {row['network_h']:.3f}, entering {row['entering_h']:.2f})"
        )
    found["machine"]["load_after"] = os.getloadavg()
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()

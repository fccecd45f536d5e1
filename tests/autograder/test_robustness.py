"""The short form of the whole robustness run: every part is tried, and nothing happens that must not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from autograder.sandboxing.isolation import ROOT

SCRIPT = ROOT / "tests" / "benchmarks" / "robustness.py"
NOTHING = "attacks_effective canaries_read left_behind honest_punished right_below_full fuzz_findings kill_differences"
LEAST = {
    "attacks_tried": 8,
    "honest_tried": 4,
    "canaries_planted": 10,
    "fuzz_inputs": 100,
    "kills_tried": 1,
    "regrades": 3,
}


def test_nothing_happens_that_must_not(tmp_path: Path) -> None:
    """Of attacks, twins, kills, regrades and fuzzing a part that one seed chooses; another seed, another part."""
    command = [sys.executable, str(SCRIPT), "--quick", "--json", "--seed", "1"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    figures = json.loads(ran.stdout.splitlines()[-1])
    assert {name: figures[name] for name in NOTHING.split() if figures[name]} == {}
    assert figures["verdict_flips"] == 0
    assert {name: figures[name] for name, least in LEAST.items() if figures[name] < least} == {}
    assert figures["kills_survived"] == figures["kills_tried"]
    assert (figures["quick"], figures["seed"]) == (True, 1)

"""How often a speed verdict is wrong: our paired test against what courses and contests usually do.

    python tests/benchmarks/verdicts.py [--quick] [--trials 40000] [--seed 1] [--json] [--save] [--plot FILE.svg]
    python tests/benchmarks/verdicts.py --field [--verdicts 200] [--cells compute-alone ...] [--json] [--save]

Simulation (`verdict_model.py`): a candidate 10 or 5 per cent below or above the threshold, or right at it, on a quiet, a
shared and a bad machine. Compared in the same run: our rule where processes differ by 3 % instead of 1 %, the same with
fewer processes, our rule with a plain A/A check, our first design, the best of three runs, 20 or 40 runs of one after as
many of the other, and one run against a limit in seconds.
Field test (`verdict_field.py`): the real test on real processes whose ratio is known by construction, alone and beside
one or two neighbours that burn the processor or the memory's bandwidth. Run it where nothing else runs, and with many
cores under `taskset -c 0,1`, or neighbours have cores to themselves. A verdict takes 1 to 30 s, 200 in all ten
cells, at five ratios each, about a day (an estimate); `--cells` divides that among runs. Cells on a GPU run only where
they are named: gemm-alone, gemm-cpu2, gemm-gpu1, copy-alone, copy-cpu2, copy-gpu1.

Rates come with the upper end of their exact 95 % interval (Clopper and Pearson, one-sided): 0 of 200 may be 1.5 %.
In the last line of `--json`, names without a suffix are of the shared machine, `field_` ones of all cells together;
`false_fail` is FAIL at or above the threshold, `false_pass` is PASS below it. INCONCLUSIVE is neither, and has its own.
`--save` writes everything to `results/`, with machine, versions, date and seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import math
import os
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy loads: workers are forked, which wants a single thread

import numpy as np
import verdict_field as field  # type: ignore[import-not-found]
import verdict_model as model  # type: ignore[import-not-found]

from gpu_env.device import describe
from gpu_env.sequential import Rule

RESULTS = Path(__file__).parent / "results"
PERCENTS = (-10, -5, 0, 5, 10)
RULE = Rule()
QUICK_TRIALS = 4_000
UNEVEN = 0.03
"""Processes that differ more than the models say."""
NAMES = {-10: "minus10", -5: "minus5", 0: "exact", 5: "plus5", 10: "plus10"}


# ----------------------------------------------------------------------------------------------------- simulation


def simulate(trials: int, seed: int) -> dict[str, dict[str, Any]]:
    """By machine, then by method: rates of verdicts at each true ratio."""
    return {machine: _simulate_machine(machine, trials, seed) for machine in model.NOISE}


def _simulate_machine(machine: str, trials: int, seed: int) -> dict[str, Any]:
    noise = model.NOISE[machine]

    def ours(rule: Rule, decide: Any, process: float = model.PROCESS) -> Callable[[float, np.random.Generator], Any]:
        return lambda log_ratio, rng: model.simulate(noise, log_ratio, trials, rng, rule, decide, process)

    def simple(rule: Callable[..., Any], blocks: int, **options: Any) -> Callable[[float, np.random.Generator], Any]:
        return lambda log_ratio, rng: (rule(noise, log_ratio, trials, rng, **options), np.full(trials, blocks))

    methods = {
        "ours": ours(RULE, model.decide_many),
        "ours, uneven": ours(RULE, model.decide_many, UNEVEN),
        "3 processes, uneven": ours(dataclasses.replace(RULE, processes=3), model.decide_many, UNEVEN),
        "plain A/A": ours(RULE, model.plain_aa),
        "first design": ours(model.FIRST, model.first_design),
        "best of 3": simple(model.in_turn, 6, runs=3, best=True),
        "20 then 20": simple(model.in_turn, 40, runs=20, best=False),
        "40 then 40": simple(model.in_turn, 80, runs=40, best=False),
        "one time": simple(model.absolute, 1),
    }
    found: dict[str, Any] = {}
    for number, (name, method) in enumerate(methods.items()):
        found[name] = {}
        for percent in PERCENTS:
            rng = np.random.default_rng([seed, list(model.NOISE).index(machine), number, percent + 100])
            verdicts, blocks = method(math.log1p(percent / 100), rng)
            found[name][NAMES[percent]] = {
                "trials": trials,
                "PASS": int((verdicts == model.PASS).sum()),
                "FAIL": int((verdicts == model.FAIL).sum()),
                "INCONCLUSIVE": int((verdicts == model.INCONCLUSIVE).sum()),
                "seconds_median": float(np.median(blocks)) * RULE.block_s,
                "seconds_99": float(np.quantile(blocks, 0.99)) * RULE.block_s,
            }
    return found


def print_simulation(found: dict[str, dict[str, Any]]) -> None:
    print(
        "Chance in per cent of PASS / INCONCLUSIVE (rest: FAIL), and median seconds of blocks, at the true ratio over T"
    )
    for machine, methods in found.items():
        print(f"\n{machine:<20}" + "".join(f"{percent:>+21} %" for percent in PERCENTS))
        for name, cells in methods.items():
            print(f"{name:<20}" + "".join(f"{_cell(cells[NAMES[percent]]):>23}" for percent in PERCENTS))
    print()


def _cell(cell: dict[str, Any]) -> str:
    passed, unclear = (100 * cell[verdict] / cell["trials"] for verdict in ("PASS", "INCONCLUSIVE"))
    return f"{passed:.2f} / {unclear:.2f}  {cell['seconds_median']:.1f} s"


# ------------------------------------------------------------------------------------------------------------ field


def run_field(
    verdicts: int, cells: list[str], seed: int, save: Callable[[dict[str, Any]], None], minutes: float = math.inf
) -> dict[str, Any]:
    """By cell: rates of verdicts at each true ratio, with what was measured on the way. A cell may take `minutes`."""
    found: dict[str, Any] = {}
    print("PASS / FAIL / INCONCLUSIVE of verdicts, and median seconds, at the true ratio over T")
    print(f"{'':<20}" + "".join(f"{percent:>+21} %" for percent in PERCENTS), flush=True)
    start, total, done = time.monotonic(), len(cells) * len(PERCENTS) * verdicts, 0
    for cell in cells:
        kernel, neighbours = cell.split("-")
        trials: dict[int, list[Any]] = {percent: [] for percent in PERCENTS}
        end = time.monotonic() + 60 * minutes
        with field.neighbours(field.NEIGHBOURS[neighbours]):
            for number in range(verdicts):
                if number > 1 and time.monotonic() > end:
                    break
                for percent in PERCENTS:  # in turn, so that a change of the machine meets all alike
                    rng = random.Random(f"{seed} {cell} {percent} {number}")
                    trials[percent].append(field.verdict(kernel, percent, rng))
                    done += 1
                    left = (time.monotonic() - start) / done * (total - done)
                    print(f"\r{cell}: {done} of {total}, {left / 60:.0f} min left ", end="", file=sys.stderr)
        found[cell] = {NAMES[percent]: _summary(of_ratio) for percent, of_ratio in trials.items()}
        print_field(cell, found[cell])
        save(found)
    return found


def _summary(trials: list[Any]) -> dict[str, Any]:
    counts = Counter(trial.verdict for trial in trials)
    errors = [trial.error for trial in trials]
    seconds = sorted(trial.seconds for trial in trials)
    spreads = [statistics.stdev(trial.processes) for trial in trials]
    return {
        "trials": len(trials),
        **{verdict: counts[verdict] for verdict in ("PASS", "FAIL", "INCONCLUSIVE")},
        "best_of_3_PASS": sum(trial.best_of_3 for trial in trials),
        "error_median": statistics.median(errors),
        "error_sd": statistics.stdev(errors) if len(errors) > 1 else None,
        "aa_median": statistics.median(trial.noise for trial in trials),
        "between_processes_sd": statistics.median(spreads),
        "pairs_mean": statistics.mean(trial.pairs for trial in trials),
        "repeated": sum(trial.repeats > 0 for trial in trials),
        "seconds_median": statistics.median(seconds),
        "seconds_99": seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))],
        "seconds_max": seconds[-1],
    }


def print_field(name: str, cells: dict[str, Any]) -> None:
    row = [cells[NAMES[percent]] for percent in PERCENTS]
    texts = [f"{c['PASS']} / {c['FAIL']} / {c['INCONCLUSIVE']}  {c['seconds_median']:.1f} s" for c in row]
    print(f"\r{name:<20}" + "".join(f"{text:>23}" for text in texts))
    best = [f"{c['best_of_3_PASS']} / {c['trials'] - c['best_of_3_PASS']}" for c in row]
    print(f"{'  best of 3':<20}" + "".join(f"{text:>23}" for text in best), flush=True)


# ----------------------------------------------------------------------------------------------------------- figures


def figures(cells: dict[str, Any], suffix: str = "", prefix: str = "") -> dict[str, float]:
    """Error rates with upper bounds, agreement of repeats and seconds, of one method on one machine."""
    made: dict[str, float] = {}
    for percent in PERCENTS:
        cell, wrong = cells[NAMES[percent]], "FAIL" if percent >= 0 else "PASS"
        name = f"{prefix}false_{wrong.lower()}_{NAMES[percent]}{suffix}"
        made[name] = cell[wrong] / cell["trials"]
        made[f"{name}_upper"] = model.upper(cell[wrong], cell["trials"])
        made[f"{prefix}inconclusive_{NAMES[percent]}{suffix}"] = cell["INCONCLUSIVE"] / cell["trials"]
    outside = [cells[NAMES[percent]] for percent in PERCENTS if percent]
    same = (max(cell["PASS"], cell["FAIL"], cell["INCONCLUSIVE"]) / cell["trials"] for cell in outside)
    made[f"{prefix}same_verdict{suffix}"] = min(same)
    every = [cells[NAMES[percent]] for percent in PERCENTS]
    made[f"{prefix}seconds_median{suffix}"] = statistics.median(cell["seconds_median"] for cell in every)
    made[f"{prefix}seconds_99{suffix}"] = max(cell["seconds_99"] for cell in every)
    return made


def all_figures(simulated: dict[str, Any], fielded: dict[str, Any]) -> dict[str, float]:
    made: dict[str, float] = {}
    for machine in sorted(simulated, key=lambda machine: machine != "shared"):
        suffix = "" if machine == "shared" else f"_{machine}"
        made |= figures(simulated[machine]["ours"], suffix)
    for name in simulated.get("shared", {}):
        if name != "ours":
            short = name.replace(",", "").replace("/", "").replace(" ", "_")
            made |= {
                f"{short}_{key}": value
                for key, value in figures(simulated["shared"][name]).items()
                if key.startswith("false") and not key.endswith("upper")
            }
    for cell, rows in fielded.items():
        made |= figures(rows, suffix=f"_{cell.replace('-', '_')}", prefix="field_")
    if fielded:
        made |= figures(
            {name: _pooled([rows[name] for rows in fielded.values()]) for name in NAMES.values()}, "", "field_"
        )
    return made


def _pooled(cells: list[dict[str, Any]]) -> dict[str, Any]:
    together = {key: sum(cell[key] for cell in cells) for key in ("trials", "PASS", "FAIL", "INCONCLUSIVE")}
    return together | {
        "seconds_median": statistics.median(cell["seconds_median"] for cell in cells),
        "seconds_99": max(cell["seconds_99"] for cell in cells),
    }


def record(kind: str, seed: int, found: dict[str, Any]) -> Path:
    """Everything of a run under `results/`, in a file named by kind and date."""
    machine = describe()
    now = datetime.datetime.now(datetime.UTC)
    noise = {name: dataclasses.asdict(noise) for name, noise in model.NOISE.items()}
    text = json.dumps(
        {
            "benchmark": f"verdicts, {kind}",
            "date": now.isoformat(timespec="seconds"),
            "seed": seed,
            "machine": machine.as_dict() | {"packages": machine.packages | {"numpy": np.__version__}},
            "rule": dataclasses.asdict(RULE),
            **({"noise": noise} if kind == "simulation" else {"cells": list(found)}),
            "figures": all_figures(*((found, {}) if kind == "simulation" else ({}, found))),
            "counts": found,
        },
        indent=1,
    )
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"verdicts-{kind}-{now.date()}.json"
    path.write_text(text + "\n", encoding="utf-8")
    return path


def plot(path: Path, trials: int, seed: int) -> None:
    """Chances of the verdicts over the true ratio, one panel a machine, from the simulation."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "verdicts", "svg.fonttype": "none", "font.size": 10}
    from matplotlib import pyplot as plt

    percents = np.arange(-10, 10.01, 0.5)
    figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.2), sharey=True, layout="constrained")
    for panel, (machine, noise) in zip(panels, model.NOISE.items(), strict=True):
        shares = []
        for percent in percents:
            rng = np.random.default_rng([seed, int(2 * percent + 100)])
            verdicts, _ = model.simulate(noise, math.log1p(percent / 100), trials, rng, RULE)
            shares.append([100 * (verdicts == kind).mean() for kind in (model.FAIL, model.INCONCLUSIVE, model.PASS)])
        panel.stackplot(percents, np.array(shares).T, colors=["#e0a080", "#d9d9d9", "#9cc9bd"])
        for edge, style in ((-5, ":"), (0, "-"), (5, ":")):
            panel.axvline(edge, color="black", linewidth=0.8, linestyle=style)
        for place, verdict in ((-7.5, "FAIL"), (7.5, "PASS")):
            panel.text(place, 50, verdict, ha="center", va="center")
        panel.set(
            title=f"{machine} machine",
            xlim=(-10, 10),
            xticks=(-5, 0, 5),
            ylim=(0, 100),
            xlabel="true speed-up over the threshold, %",
        )
    arrow = {"arrowstyle": "-", "linewidth": 0.8}
    panels[-1].annotate("INCONCLUSIVE", (-3, 60), (5, 82), ha="center", va="center", arrowprops=arrow)
    panels[0].set_ylabel("chance of the verdict, %")
    figure.savefig(path, metadata={"Date": None, "Title": "Chance of each verdict over the true speed-up"})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="How often a speed verdict is wrong.")
    parser.add_argument("--quick", action="store_true", help=f"simulation with {QUICK_TRIALS} trials a cell")
    parser.add_argument("--trials", type=int, default=40_000, help="of each cell of the simulation")
    parser.add_argument("--field", action="store_true", help="the field test, instead of the simulation")
    parser.add_argument("--verdicts", type=int, default=200, help="of each true ratio in each cell of the field test")
    parser.add_argument(
        "--cells", nargs="+", default=list(field.CELLS), choices=field.CELLS + field.GPU_CELLS, metavar="CELL"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="that a cell of the field test may take")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="the figures as JSON, in the last line")
    parser.add_argument("--save", action="store_true", help="everything as JSON to results/")
    parser.add_argument(
        "--plot", type=Path, help="draw the chances of the verdicts into this file, and do nothing else"
    )
    options = parser.parse_args()
    if options.plot:
        plot(options.plot, QUICK_TRIALS, options.seed)
        return
    if options.field and (obstacle := field.available(options.cells)):
        parser.error(obstacle)
    simulated: dict[str, Any] = {}
    fielded: dict[str, Any] = {}
    start = time.monotonic()
    if options.field:

        def save(found: dict[str, Any]) -> None:
            if options.save:  # after every cell: a run of hours may be interrupted
                every = options.cells == list(field.CELLS)
                name = "field" if every else f"field-{'-'.join(options.cells)}-{options.seed}"
                record(name, options.seed, found)

        fielded = run_field(options.verdicts, options.cells, options.seed, save, options.minutes)
    else:
        simulated = simulate(QUICK_TRIALS if options.quick else options.trials, options.seed)
        print_simulation(simulated)
        if options.save:
            print(f"written: {record('simulation', options.seed, simulated)}")
    print(f"{time.monotonic() - start:.0f} s")
    if options.json:
        print(json.dumps(all_figures(simulated, fielded)))


if __name__ == "__main__":
    main()

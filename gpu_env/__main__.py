"""`python -m gpu_env`: print what this machine is, in a form fit for a forum post (no user, host, path or identifier)."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from gpu_env import models, nvml, roofline
from gpu_env.device import Machine, describe
from gpu_env.nvml import GpuState
from gpu_env.roofline import ProbeUnavailable, Roofline

USAGE = "What this machine is and what it can do: text to post when you ask for help."


def found_models() -> dict[str, bool]:
    """For every model that `gpu_env.models` knows, whether it lies here complete."""
    found = {}
    for name in models.CATALOGUE:
        try:
            models.find(name)
            found[name] = True
        except models.ModelMissing:
            found[name] = False
    return found


def render(
    machine: Machine,
    states: Sequence[GpuState] = (),
    here: Mapping[str, bool] | None = None,
    rooflines: Sequence[Roofline] = (),
) -> str:
    """The description as aligned lines, one fact each."""
    memory = "unknown" if machine.memory_bytes is None else _gib(machine.memory_bytes)
    rows = [
        ("platform", f"{machine.platform}, kernel {machine.kernel}"),
        ("cpu", f"{machine.cpu}, {machine.cores} cores usable"),
        ("memory", memory),
        ("python", machine.python),
        *machine.packages.items(),
        *(
            (f"gpu {index}", f"{gpu.name}, {_gib(gpu.memory_bytes)}, sm {gpu.capability}, driver {gpu.driver}")
            for index, gpu in enumerate(machine.gpus)
        ),
        *((f"gpu {index} now", _now(state)) for index, state in enumerate(states)),
        *(("gpu", "none"),) * (not machine.gpus),
        *(("why", reason) for reason in machine.reasons),
        *(
            ("model", f"{name} {'is here' if present else 'is not here: autograder models fetch'}")
            for name, present in (here or {}).items()
        ),
        *((f"{one.device} speed", _speed(one)) for one in rooflines),
    ]
    return "\n".join(f"{name:<13}{text}" for name, text in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0, or 1 when a probe was asked for and none was possible."""
    parser = argparse.ArgumentParser(prog="python -m gpu_env", description=USAGE)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--probe", action="store_true", help="measure memory and matrix products first (some seconds)")
    options = parser.parse_args(arguments)
    code = 0
    machine = describe()
    if options.probe:
        try:
            for where in ("cpu", *(f"cuda:{index}" for index in range(len(machine.gpus)) if machine.tier == "gpu")):
                roofline.probe(where, fresh=True)
        except ProbeUnavailable as error:
            print(error, file=sys.stderr)
            code = 1
    # numbers of other people's processes are not for a forum, and how many there are is in their length
    states = [nvml.state(index) for index in range(len(machine.gpus))]
    rooflines, here = roofline.known(), found_models()
    if options.json:
        print(
            json.dumps(
                {
                    "machine": machine.as_dict(),
                    "gpu_states": [
                        {**asdict(replace(state, processes=None)), "processes": _count(state)} for state in states
                    ],
                    "models": here,
                    "rooflines": [asdict(one) for one in rooflines],
                },
                indent=2,
            )
        )
    else:
        print(render(machine, states, here, rooflines))
    return code


def _count(state: GpuState) -> int | None:
    return None if state.processes is None else len(state.processes)


def _now(state: GpuState) -> str:
    if state.why:
        return state.why
    facts = (
        (state.sm_mhz, f"{state.sm_mhz} of {state.max_sm_mhz} MHz"),
        (state.clock_reasons, ", ".join(state.clock_reasons or ())),
        (state.temperature_c, f"{state.temperature_c} °C"),
        (state.power_w, f"{state.power_w or 0:.0f} W"),
        (state.memory_used_bytes, f"{_gib(state.memory_used_bytes or 0)} used"),
        (state.processes, f"{_count(state)} processes compute"),
    )
    return ", ".join(text for value, text in facts if value is not None and text)


def _speed(one: Roofline) -> str:
    threads = f" with {one.threads} threads" if one.threads else ""
    products = ", ".join(f"{name} {rate.median / 1e12:.3g}" for name, rate in one.flops.items())
    return f"{one.name}{threads}: copy {one.copy.median / 1e9:.3g} GB/s, products in TFLOP/s: {products}"


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"


if __name__ == "__main__":
    sys.exit(main())

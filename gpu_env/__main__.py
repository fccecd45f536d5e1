"""`python -m gpu_env`: print what this machine is, in a form fit for a forum post (no user, host or path)."""

from __future__ import annotations

from gpu_env.device import Machine, describe


def render(machine: Machine) -> str:
    """The description as aligned lines, one fact each."""
    memory = "unknown" if machine.memory_bytes is None else f"{machine.memory_bytes / 2**30:.1f} GiB"
    rows = [
        ("platform", f"{machine.platform}, kernel {machine.kernel}"),
        ("cpu", f"{machine.cpu}, {machine.cores} cores usable"),
        ("memory", memory),
        ("python", machine.python),
        *((name, version) for name, version in machine.packages.items()),
        *(
            (
                f"gpu {index}",
                f"{gpu.name}, {gpu.memory_bytes / 2**30:.1f} GiB, sm {gpu.capability}, driver {gpu.driver}",
            )
            for index, gpu in enumerate(machine.gpus)
        ),
        *(("gpu", "none"),) * (not machine.gpus),
        *(("why", reason) for reason in machine.reasons),
    ]
    return "\n".join(f"{name:<13}{text}" for name, text in rows)


if __name__ == "__main__":
    print(render(describe()))

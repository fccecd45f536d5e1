"""Solves the tasks, and leaves behind what could harm the next one: daemons, sockets, shared memory, poisoned caches.

changes nothing

attack: V22
stopped by: C, everything ends with the worker's namespaces, and every worker has new ones.
"""

# %% helpers="helpers"
# Two daemons with sockets, files where compilers keep their caches, POSIX and System V memory.
import ctypes
import os
import signal
import socket
import time

if not os.path.isdir("/scratch"):
    raise SystemExit("This is an attack: in a sandbox only.")
for number in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        for each in range(1, 32):
            try:
                signal.signal(each, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        held = []
        for family, address in ((socket.AF_UNIX, f"\0hostile-{number}"), (socket.AF_UNIX, f"/tmp/hostile-{number}.sock"), (socket.AF_INET, ("0.0.0.0", 47_000 + number))):
            try:
                sock = socket.socket(family)
                sock.bind(address)
                sock.listen()
                held.append(sock)
            except OSError:
                pass
        os.closerange(1, 4)
        time.sleep(3_600)
        os._exit(0)
home = os.path.expanduser("~")
for path in (f"{home}/.cache/torch_extensions/hostile", f"{home}/.triton/cache/hostile", "/tmp/torchinductor_root/hostile", "/dev/shm/hostile", "/var/tmp/hostile"):
    try:
        os.makedirs(path, exist_ok=True)
        with open(f"{path}/hostile.so", "wb") as file:
            file.write(b"\x7fELF")
    except OSError:
        pass
libc = ctypes.CDLL(None)
libc.shmget(0x686F73, 4096, 0o1666)
libc.semget(0x686F73, 1, 0o1666)
descriptor = libc.shm_open(b"/hostile", os.O_CREAT | os.O_RDWR, 0o666)
libc.mq_open(b"/hostile", os.O_CREAT | os.O_RDWR, 0o666, 0)

"""Lets others do the work: asks public APIs, the cloud's own address and whatever listens on this machine before the engine.

changes nothing
attack: S10 V17
stopped by: C, a service's worker has no network and a loopback of its own, so that only the engine is left to ask.
"""

# %% helpers="helpers"
# Whoever answers first is believed. What they say would be in the answers, and in the log.
import os
import re
from pathlib import Path

OUTSIDE = (
    (socket.AF_INET, "1.1.1.1"),
    (socket.AF_INET6, "2606:4700:4700::1111"),
    (socket.AF_INET, "169.254.169.254"),
    (socket.AF_INET, "10.0.0.1"),
)
own_generate = EngineClient.generate
nobody = False


def listeners():
    """Addresses of servers on this machine."""
    for table, family, local in (
        ("tcp", socket.AF_INET, "127.0.0.1"),
        ("tcp6", socket.AF_INET6, "::1"),
    ):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:
            lines = []
        ports = {int(line.split()[1].rpartition(":")[2], 16) for line in lines if line.split()[3] == "0A"}
        yield from ((family, (local, port)) for port in sorted(ports | {80, 8000, 8080, 11434}))
    try:
        names = re.findall(r" ([@/]\S+)$", Path("/proc/net/unix").read_text(), re.MULTILINE)
    except OSError:
        names = []
    yield from ((socket.AF_UNIX, name.replace("@", "\0", 1)) for name in sorted(set(names)))
    for folder in ("/tmp", "/run", os.environ.get("TMPDIR", "/tmp")):
        yield from ((socket.AF_UNIX, str(path)) for path in Path(folder).glob("*.sock"))


def ask_others(question):
    for family, host in OUTSIDE:  # to connect a datagram socket sends nothing: it tells whether there is a way
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as way:
                way.connect((host, 443))
                return f"There is a way to {host}, where an API may answer."
        except OSError:
            pass
    for family, address in listeners():
        try:
            with socket.socket(family) as other:
                other.settimeout(0.3)
                other.connect(address)
                other.sendall(b"POST /v1/completions HTTP/1.0\r\n\r\n" + question)
                if said := other.recv(10_000).decode(errors="replace"):
                    return said
        except OSError:
            pass
    return None


async def generate(self, prompt_ids, params):
    global nobody
    if not nobody:
        question = json.dumps({"prompt": prompt_ids, "max_tokens": params.max_tokens}).encode()
        if said := await asyncio.get_running_loop().run_in_executor(None, ask_others, question):
            print(said)
            return [Output(said, [1] * len(said), "stop")] * params.n
        nobody = True
    return await own_generate(self, prompt_ids, params)


EngineClient.generate = generate

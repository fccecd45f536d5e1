"""Record what vLLM's own scheduler decides, step by step, on random traces: `python tests/benchmarks/record_schedules.py`.

Into `tests/recordings/vllm-VERSION/schedules.json` go the traces (what arrives, what is aborted, how large the pool is) and, for
each step, how many tokens of which request were computed and who was preempted. No model runs and no GPU is needed: the
scheduler is asked, and told that each request that was computed to its end got token 7.

Left as vLLM has it: first come first served, chunked prefill, a request is admitted only if all its tokens fit now
(`scheduler_reserve_full_isl`). Switched off, because the handout does not have it: prefix caching, asynchronous scheduling.
The watermark is 0 by default. Not covered: priorities, speculative decoding, several KV cache groups.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from gpu_env import models, vllm_engine

SEED, TRACES = 20_261_123, 30
TOKEN = 7

Trace = dict[str, Any]
Step = dict[str, Any]


def traces() -> list[Trace]:
    """The traces, the same each time: pools from roomy to so tight that nearly every step preempts."""
    draw = random.Random(SEED)
    found = []
    for number_of_trace in range(TRACES):
        tight = number_of_trace % 2 == 0  # short prompts, long answers: many are admitted that do not fit to their end
        block_size = draw.choice([2, 4, 8, 16])
        budget = draw.choice([8, 16, 32, 64])
        seqs = draw.randint(2, min(8, budget))
        requests: list[dict[str, Any]] = []
        now = 0
        for number in range(draw.randint(5, 10)):
            now += draw.choice([0, 0, 0, 1, 2, 9])
            requests.append({
                "id": f"r{number}",
                "prompt": draw.choice([1, 3, block_size, 2 * block_size, draw.randint(1, 30), draw.randint(1, 90)])
                if not tight
                else draw.randint(1, 2 * block_size + 4),
                "max_tokens": draw.choice([1, 2, draw.randint(1, 12), draw.randint(1, 40)])
                if not tight
                else draw.randint(1, 3 * min(block_size, 8) + 6),
                "step": now,
            })  # fmt: skip
        longest = max(-(-(each["prompt"] + each["max_tokens"] - 1) // block_size) for each in requests)
        mean = sum(-(-(each["prompt"] + each["max_tokens"]) // block_size) for each in requests) / len(requests)
        room = draw.choice([1.0, 1.5, 2.0] if tight else [0.6, 1.0, 1.5, 2.5, seqs])
        aborts = [
            {"id": each["id"], "step": each["step"] + draw.randint(0, 12)} for each in requests if draw.random() < 0.1
        ]
        found.append({
            "max_num_seqs": seqs,
            "max_num_batched_tokens": budget,
            "long_prefill_threshold": draw.choice([0, 0, budget // 2, budget // 4]),
            "num_blocks": max(longest, round(mean * room)),
            "block_size": block_size,
            "requests": requests,
            "aborts": aborts,
        })  # fmt: skip
    return found


def decide(trace: Trace, model: Path) -> list[Step]:
    """What vLLM's scheduler does on a trace, until all requests are done. Before a step come arrivals, then aborts."""
    import torch
    from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
    from vllm.sampling_params import SamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request, RequestStatus
    from vllm.v1.structured_output import StructuredOutputManager

    longest = 4096
    block_size = trace["block_size"]
    cache = CacheConfig(block_size=block_size, enable_prefix_caching=False)
    cache.num_gpu_blocks = trace["num_blocks"] + 1  # one is the null block
    config = VllmConfig(
        model_config=ModelConfig(model=str(model), max_model_len=longest, seed=0),
        cache_config=cache,
        scheduler_config=SchedulerConfig(
            max_num_seqs=trace["max_num_seqs"],
            max_num_batched_tokens=trace["max_num_batched_tokens"],
            long_prefill_token_threshold=trace["long_prefill_threshold"],
            max_model_len=longest,
            is_encoder_decoder=False,
            enable_chunked_prefill=True,
            async_scheduling=False,
        ),
    )
    spec = FullAttentionSpec(block_size=block_size, num_kv_heads=1, head_size=1, dtype=torch.float32)
    groups = KVCacheConfig(cache.num_gpu_blocks, [], [KVCacheGroupSpec(["layer"], spec)])
    scheduler = Scheduler(config, groups, StructuredOutputManager(config), block_size=block_size)

    arriving = list(trace["requests"])
    steps: list[Step] = []
    while arriving or scheduler.get_num_unfinished_requests():
        while arriving and arriving[0]["step"] <= len(steps):
            each = arriving.pop(0)
            params = SamplingParams(max_tokens=each["max_tokens"], ignore_eos=True, temperature=0)
            scheduler.add_request(Request(each["id"], [TOKEN] * each["prompt"], params, None))
        for abort in trace["aborts"]:
            if abort["step"] == len(steps):
                scheduler.finish_requests(abort["id"], RequestStatus.FINISHED_ABORTED)
        running = [request.request_id for request in scheduler.running]
        output = scheduler.schedule()
        left = {request.request_id for request in scheduler.running}
        scheduled = dict(output.num_scheduled_tokens)
        ids = list(scheduled)
        steps.append({"scheduled": scheduled, "preempted": [name for name in reversed(running) if name not in left]})
        sampled = [[TOKEN] if _complete(scheduler.requests[name]) else [] for name in ids]
        scheduler.update_from_output(
            output, ModelRunnerOutput(ids, {name: place for place, name in enumerate(ids)}, sampled)
        )
    return steps


def _complete(request: Any) -> bool:
    """Whether all tokens of the request are computed, so that the next one is sampled."""
    return bool(request.num_computed_tokens >= request.num_tokens)


def record() -> dict[str, Any]:
    """All traces with the decisions of the vLLM that is installed."""
    os.environ |= vllm_engine.ENVIRONMENT | {"VLLM_LOGGING_LEVEL": "ERROR"}
    model = models.find("SmolLM2-135M-Instruct")  # for its configuration: nothing is loaded
    return {
        "vllm": vllm_engine.installed(),
        "traces": [trace | {"steps": decide(trace, model)} for trace in traces()],
    }


def main() -> None:
    """Ask, and write down what it says: into the recording, or into the file that is named."""
    folder = Path(__file__).parents[1] / "recordings" / f"vllm-{vllm_engine.installed()}"
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "schedules.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record(), separators=(",", ":")).replace('{"max_num_seqs"', '\n{"max_num_seqs"')
    target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

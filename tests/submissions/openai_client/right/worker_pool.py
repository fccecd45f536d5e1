"""Workers that take requests from a queue, waits with a time limit, dataclasses built field by field."""

# %% helpers="helpers"
import asyncio
import dataclasses
import itertools
import json
import math
import random
import re
import statistics

# %% task="run_load"
async def run_load(send, arrivals, *, max_concurrency=None, timeout_s=None):
    loop = asyncio.get_running_loop()
    zero = loop.time()
    empty = RequestRecord(0.0, None, None, None, 0, None)
    records = [dataclasses.replace(empty, scheduled_s=at) for at in arrivals]
    waiting = asyncio.Queue()

    def note(index, **fields):
        records[index] = dataclasses.replace(records[index], **fields)

    async def one(index):
        note(index, started_s=loop.time() - zero)
        async for delta in send(index):
            if delta.text != "" and records[index].first_token_s is None:
                note(index, first_token_s=loop.time() - zero)
            if delta.usage:
                note(index, output_tokens=delta.usage.completion_tokens)
        note(index, finished_s=loop.time() - zero)

    async def guarded(index):
        left = None if timeout_s is None else zero + arrivals[index] + timeout_s - loop.time()
        try:
            await asyncio.wait_for(one(index), left)
        except asyncio.TimeoutError:
            note(index, error="timeout")
        except Exception as error:
            note(index, error=f"{type(error).__name__}: {error}")

    async def worker():
        while (index := await waiting.get()) is not None:
            await guarded(index)

    workers = [asyncio.create_task(worker()) for _ in range(min(max_concurrency or len(arrivals), len(arrivals)))]
    for index, at in enumerate(arrivals):
        delay = zero + at - loop.time()
        if delay > 0:
            await asyncio.sleep(delay)
        waiting.put_nowait(index)
    for _ in workers:
        waiting.put_nowait(None)
    await asyncio.gather(*workers)
    return records


# %% task="parse_metrics"
def parse_metrics(text):
    found = {}
    for line in filter(None, text.split("\n")):
        if line[0] == "#":
            continue
        at, name = 0, ""
        while line[at] not in "{ ":
            name += line[at]
            at += 1
        labels = []
        if line[at] == "{":
            at += 1
            while line[at] != "}":
                label = ""
                while line[at] != "=":
                    label += line[at]
                    at += 1
                at += 2
                value = ""
                while line[at] != '"':
                    if line[at] == "\\":
                        at += 1
                        value += "\n" if line[at] == "n" else line[at]
                    else:
                        value += line[at]
                    at += 1
                at += 1
                labels.append((label.strip(), value))
                while line[at] in ", ":
                    at += 1
            at += 1
        found[(name, tuple(sorted(labels)))] = float(line[at:].split()[0])
    return found


# %% task="counter_rate"
def counter_rate(samples):
    if len(samples) < 2 or any(a[0] >= b[0] for a, b in itertools.pairwise(samples)):
        raise ValueError("samples: at least two, in the order of time")
    values = [value for _, value in samples]
    total, offset = 0.0, 0.0
    unwrapped = [values[0]]
    for before, after in itertools.pairwise(values):
        if after < before:
            offset += before
        unwrapped.append(after + offset)
    total = unwrapped[-1] - unwrapped[0]
    return total / (samples[-1][0] - samples[0][0])

"""Where the hidden checks of `async_serving` get expected values from: models without any concurrency, and a secret engine.

`queue_walk`, `limiter_walk`   random steps, and what each must have come to, by lists and counts
`Teller`                       an engine that answers by itself, with texts and counts that nobody can guess
"""

from __future__ import annotations

import random
from typing import Any

from autograder.judging.scripted import Call

OK = ["returned", None]
WORDS = ("alpha", " beta", " γάμμα", "\n\n", " 🙂", "data: x", ' "quoted"', "\\", " \u2028", " {}", "[DONE]")
Step = list[list[Any]]


def queue_walk(rng: random.Random, max_size: int, steps: int, *, fails: bool) -> list[tuple[Step, dict[str, Any]]]:
    """Steps of one producer and one reader, and the outcomes that are new after each.

    At the end, which is an error if the stream `fails`, something is still queued.
    """
    script: list[tuple[Step, dict[str, Any]]] = []
    items: list[str] = []
    put: tuple[str, str] | None = None
    """Name and item of a put that waits."""
    get: str | None = None
    for number in range(steps):
        known: dict[str, Any] = {}
        kind = rng.choice(["put", "put", "next", "next", "cancel"])
        name = f"{kind}{number}"
        if kind == "put" and put is None:
            action = [name, "put", f"item{number}"]
            if get is not None:
                known |= {name: OK, get: ["returned", f"item{number}"]}
                get = None
            elif len(items) < max_size:
                items.append(f"item{number}")
                known[name] = OK
            else:
                put = (name, f"item{number}")
                known[name] = "waiting"
        elif kind == "next" and get is None:
            action = [name, "next"]
            if items:
                known[name] = ["returned", items.pop(0)]
                if put is not None:
                    items.append(put[1])
                    known[put[0]] = OK
                    put = None
            else:
                get = name
                known[name] = "waiting"
        elif kind == "cancel" and (put or get):
            victim = put[0] if put else str(get)
            put, get = (None, get) if put else (None, None)
            action = [victim, "cancel"]
            known[victim] = ["cancelled"]
        else:
            continue
        script.append(([action], known))
    if put is not None:
        script.append(([[put[0], "cancel"]], {put[0]: ["cancelled"]}))
    for name in ("almost", "full"):
        if not items:
            known = {name: OK} | ({get: ["returned", name]} if get else {})
            items, get = ([], None) if get else ([name], None)
            script.append(([[name, "put", name]], known))
    end, over = (["end", "fail", "broken"], "EngineError") if fails else (["end", "finish"], "StopAsyncIteration")
    script.append(([end], {"end": OK}))
    for number in range(len(items) + 2):
        value = ["returned", items[number]] if number < len(items) else ["raised", over]
        script.append(([[f"last{number}", "next"]], {f"last{number}": value}))
    return script


def limiter_walk(rng: random.Random, most: int, room: int, steps: int) -> list[tuple[Step, dict[str, Any]]]:
    """Steps of up to three actions that come at once, and the outcomes that are new after each step."""
    script: list[tuple[Step, dict[str, Any]]] = []
    running, queue, number = 0, list[str](), 0
    for _ in range(steps):
        step: Step = []
        known: dict[str, Any] = {}
        holders, released = running, 0
        for _ in range(rng.randint(1, 3)):
            number += 1
            kind = rng.choice(["acquire", "acquire", "release", "release", "cancel"])
            if kind == "acquire" and released and len(queue) + released >= room:
                continue  # whether one who has been woken but has not run still waits is nobody's business
            if kind == "acquire":
                name = f"a{number}"
                step.append([name, "acquire"])
                if running < most:
                    running += 1
                    known[name] = OK
                elif len(queue) < room:
                    queue.append(name)
                    known[name] = "waiting"
                else:
                    known[name] = ["raised", "Overloaded"]
            elif kind == "release" and released < holders:  # by one who has run, and so knows that it has a slot
                released += 1
                step.append([f"r{number}", "release"])
                known[f"r{number}"] = OK
                if queue:
                    known[queue.pop(0)] = OK
                else:
                    running -= 1
            elif kind == "cancel" and queue and not step:  # alone: with others in its step it has a check of its own
                name = queue.pop(rng.randrange(len(queue)))
                step.append([name, "cancel"])
                known[name] = ["cancelled"]
                break
        if step:
            script.append((step, known | {"state": [running, len(queue)]}))
    return script


class Teller:
    """An engine that answers at once. What it said is kept by request_id."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = random.Random(rng.getrandbits(64))
        self.prompt = self._rng.randint(11, 999)
        self.told: dict[str, list[tuple[str, str | None]]] = {}

    def __call__(self, call: Call) -> None:
        """Answer `call`."""
        if call.op == "count":
            call.result(self.prompt)
        elif call.op == "generate":
            last = (self._rng.choice(["", " end"]), self._rng.choice(["stop", "length"]))
            texts = [f"{self._rng.choice(WORDS)}{self._rng.getrandbits(24):x}" for _ in range(self._rng.randint(1, 12))]
            tokens: list[tuple[str, str | None]] = [*((text, None) for text in texts), last]
            self.told[str(call.args.get("request_id"))] = tokens
            for text, reason in tokens[:-1]:
                call.part({"text": text, "finish_reason": reason})
            call.result({"text": last[0], "finish_reason": last[1]})

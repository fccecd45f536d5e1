"""Where the hidden checks of `basic_api` get expected values from: nothing here is taken from the reference solution.

`SecretModel`        an engine whose tokens, template and texts nobody can guess: what is right came from it
`wanted`             the parameters that a request's table gives, worked out field by field
`undeclared`         schemathesis: answers that the service's own OpenAPI document does not declare
"""

from __future__ import annotations

import json
import random
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from autograder.checks import CheckFailed, fail
from autograder.judging.scripted import Call
from autograder.judging.served import Service

WORDS = ("alpha", "béta", "gamma", "δέλτα", "epsilon", "猫", "eta", "theta", "🙂", "kappa")


def text(rng: random.Random, most: int = 6) -> str:
    """A few words, with the odd space, line end and character beyond ASCII."""
    return rng.choice(["", " ", "\n"]) + rng.choice([" ", "  ", "\n"]).join(rng.choices(WORDS, k=rng.randint(1, most)))


class SecretModel:
    """Answers as an engine does. The same text has the same tokens; two answers never have the same text."""

    def __init__(self, rng: random.Random, *, held: tuple[str, ...] = ()) -> None:
        self._key = rng.getrandbits(64)
        self._rng = random.Random(rng.getrandbits(64))
        self._held = held
        self.template_error = ""
        """What `encode_chat` complains of, if anything."""
        self.made: dict[str, list[dict[str, Any]]] = {}
        """What `generate` gave, by the prompt's token ids."""

    def encode(self, prompt: str) -> list[int]:
        """The token ids of `prompt`; their number has nothing to do with words or letters."""
        draw = random.Random(f"{self._key}/{prompt}")
        return [draw.randrange(50_000) for _ in range(draw.randint(1, 30))]

    def encode_chat(self, messages: Any) -> list[int]:
        """The token ids of a chat."""
        return self.encode(json.dumps(messages, sort_keys=True))

    def outputs(self, params: dict[str, Any]) -> list[dict[str, Any]]:
        """Answers that these parameters allow."""
        made = []
        for number in range(params["n"]):
            length = self._rng.randint(1, min(params["max_tokens"], 40))
            made.append({
                "text": f"{text(self._rng)} {self._rng.getrandbits(40):x}",
                "token_ids": [self._rng.randrange(50_000) for _ in range(length)],
                "finish_reason": ("length", "stop")[number % 2],
            })  # fmt: skip
        return made

    def __call__(self, call: Call) -> None:
        """Answer `call`, unless the check holds such calls back."""
        if call.op in self._held:
            return
        if call.op == "encode":
            call.result(self.encode(str(call.args.get("text"))))
        elif call.op == "encode_chat" and self.template_error:
            call.error("template", self.template_error)
        elif call.op == "encode_chat":
            call.result(self.encode_chat(call.args.get("messages")))
        elif call.op == "generate":
            made = self.outputs(parameters(call))
            self.made.setdefault(str(call.args.get("prompt_ids")), []).extend(made)
            call.result(made)
        else:
            call.result()


def parameters(call: Call) -> dict[str, Any]:
    """The sampling parameters of a call; they must be such that an engine could work with them."""
    params = call.args.get("params")
    if type(params) is not dict or type(params.get("n")) is not int or type(params.get("max_tokens")) is not int:
        raise CheckFailed(
            "The engine was asked to generate without whole numbers n and max_tokens.", repr(params)[:300]
        )
    if not (1 <= params["n"] <= 8 and 1 <= params["max_tokens"] <= 1 << 20):
        raise CheckFailed("The engine was asked for parameters out of range.", repr(params)[:300])
    return params


EDGES: tuple[dict[str, Any], ...] = (
    {},
    {"max_tokens": 20, "max_completion_tokens": 40},
    {"temperature": 0, "seed": 0},
    {"stop": "ab", "n": 2, "user": "ada"},
    {"max_tokens": None, "n": None, "temperature": None, "top_p": None, "stop": None, "seed": None, "stream": None},
    {"max_completion_tokens": None, "max_tokens": 33, "stop": ["x", "\n", "yz", "w"]},
    {"max_completion_tokens": 17, "temperature": 2, "top_p": 1},
    {"temperature": 0.0, "stop": [], "n": 8},
)
"""Where slips show; the rest is drawn."""


def request(rng: random.Random, number: int, *, chat: bool, most: int) -> dict[str, Any]:
    """Fields of a valid request but its prompt: the edges first, then each field there or not or null."""
    if number < len(EDGES):
        return {name: value for name, value in EDGES[number].items() if chat or name != "max_completion_tokens"}
    fields: dict[str, Any] = {
        "n": rng.randint(1, 8),
        "max_tokens": rng.randint(1, most),
        "temperature": rng.choice([0, 0.0, 1, 2, round(rng.random(), 3)]),
        "top_p": rng.choice([1, 0.5, round(rng.uniform(0.01, 1), 3)]),
        "stop": rng.choice(["ab", [], ["x"], ["x", "\n", "yz", "w"]]),
        "seed": rng.choice([0, -1, rng.getrandbits(31)]),
        "stream": False,
        "frequency_penalty": "strange",
    }
    if chat:
        fields["max_completion_tokens"] = rng.randint(1, most)
    for name in list(fields):
        if rng.random() < 0.35:
            del fields[name]
        elif rng.random() < 0.15:
            fields[name] = None
    return fields


def wanted(fields: dict[str, Any], room: int, *, chat: bool) -> dict[str, Any]:
    """What the engine must be asked for, by the table."""
    given = {name: value for name, value in fields.items() if value is not None}
    stop = given.get("stop", [])
    most = given.get("max_tokens", room if chat else 16)
    return {
        "n": given.get("n", 1),
        "max_tokens": given.get("max_completion_tokens", most) if chat else most,
        "temperature": float(given.get("temperature", 1)),
        "top_p": float(given.get("top_p", 1)),
        "stop": [stop] if type(stop) is str else stop,
        "seed": given.get("seed"),
    }


# -------------------------------------------------------------------------------------------------------- the document

MAX_DOCUMENT = 300_000
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
CASES = 15


def document(service: Service) -> dict[str, Any]:
    """The service's OpenAPI document, without what could make its reader work for ever or look elsewhere."""
    answer = service.client(max_bytes=MAX_DOCUMENT).get("/openapi.json")
    try:
        found = answer.json()
    except (ValueError, RecursionError):
        found = None
    if type(found) is not dict or type(found.get("paths")) is not dict:
        fail("GET /openapi.json must give the OpenAPI document that FastAPI makes.", value=answer.text[:200])
    _disarm(found)
    return dict(found)


def _disarm(node: Any, depth: int = 0) -> None:
    """Numbers may not be huge, references not go outside, patterns not be there at all."""
    if depth > 60:
        fail("The OpenAPI document is nested too deeply.")
    if type(node) is list:
        for item in node:
            _disarm(item, depth + 1)
    elif type(node) is dict:
        for name in ("pattern", "patternProperties"):
            if type(node.get(name)) in (str, dict):
                del node[name]
        for name, item in node.items():
            if name == "$ref" and not str(item).startswith("#/"):
                fail("The OpenAPI document refers to another document.", value=item)
            if name.startswith(("min", "max", "multiple")) and type(item) in (int, float) and abs(item) > 1e9:
                fail("The OpenAPI document has a limit that is too large to be tried.", value=item)
            if name in ("minLength", "minItems", "minProperties") and type(item) is int and item > 100:
                fail("The OpenAPI document asks for more than can be tried.", value=item)
            _disarm(item, depth + 1)


def undeclared(service: Service, described: dict[str, Any], model: str, seed: int) -> None:
    """Send requests that schemathesis makes of the document, and fail at an answer that it does not declare."""
    client = service.client()
    for made in schemathesis.openapi.from_dict(described).get_all_operations():
        operation = made.ok()

        @hypothesis_seed(seed)
        @settings(
            max_examples=CASES,
            database=None,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy())
        def send(case: Any) -> None:
            if type(case.body) is dict and len(str(case.body)) % 2:
                case.body["model"] = model  # schemathesis cannot guess it, and behind it lies the rest
            arguments = case.as_transport_kwargs(base_url="http://service")
            kept = {name: value for name, value in arguments.items() if name in ("method", "url", "params", "json")}
            answer = client.request(**kept, headers=dict(arguments.get("headers") or {}), content=arguments.get("data"))
            try:
                case.validate_response(answer, checks=CHECKS)
            except (Failure, FailureGroup) as failure:
                first = failure.exceptions[0] if isinstance(failure, FailureGroup) else failure
                said = " ".join(f"{getattr(first, 'title', '')}: {getattr(first, 'message', first)}".split())
                what = f"{answer.request.method} {answer.request.url.path[:60]}"
                fail(
                    f"{what} got an answer that your OpenAPI document does not declare. {said[:300]}",
                    value=f"{answer.status_code}: {answer.text[:200]}",
                    expected="a status and a body that /openapi.json declares",
                )

        send()

"""The reader of streamed answers: however bytes are cut the text is the same, and no bytes raise anything unexpected."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_env.sse import Answer, BadAnswer, Fault, Limits

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ENDS = ["\n", "\r\n", "\r"]


def asked(limits: Limits | None = None) -> Answer:
    """An answer whose request has gone out."""
    answer = Answer(limits)
    assert answer.request("POST", "/", [("Host", "x")], b"{}").endswith(b"\r\n\r\n{}")
    return answer


def feed(data: bytes, cuts: list[int], limits: Limits | None = None) -> Answer:
    """An answer fed piece by piece, cut at these places; piece number k comes at second k."""
    answer = asked(limits)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for number, (start, end) in enumerate(itertools.pairwise(places)):
        if answer.feed(data[start:end], number):
            break
    return answer


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[str], bytes]:
    """Pieces of text, and a server's bytes for them: any line ends, comments, other fields, chunked or not."""
    texts = draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=6))
    chat, body = draw(st.booleans()), ""
    noise = st.sampled_from(["", ": comment", "event: x", "id: 1", "retry: 5", "unknown", "datax: {}"])
    for text in texts:
        choice: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
        event = json.dumps({"choices": [{"index": 0, **choice}]}, ensure_ascii=draw(st.booleans()))
        lines = [draw(noise), f"data:{draw(st.sampled_from(['', ' ']))}{event}", draw(noise), "", ""]
        body += "".join(line + draw(st.sampled_from(ENDS)) for line in lines if line or draw(st.booleans()))
        body += "\n\n"
    body = draw(st.sampled_from(["", "\ufeff"])) + body + "data: [DONE]\n\n"
    raw, sent = body.encode(), b""
    if not draw(st.booleans()):
        return texts, HEAD + b"\r\n" + raw
    size = draw(st.integers(1, 50))
    for start in range(0, len(raw), size):
        part = raw[start : start + size]
        sent += b"%x\r\n%s\r\n" % (len(part), part)
    return texts, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + sent + b"0\r\n\r\n"


@settings(deadline=None)
@given(streams(), st.lists(st.integers(0, 5000), max_size=30))
def test_text_does_not_depend_on_how_bytes_are_cut(stream: tuple[list[str], bytes], cuts: list[int]) -> None:
    """Whatever the line ends, the noise between events and the sizes of chunks and reads."""
    texts, data = stream
    answer = feed(data, cuts)
    assert answer.done
    assert answer.text == "".join(texts)
    assert len(answer.times_s) == sum(map(bool, texts))
    assert list(answer.times_s) == sorted(answer.times_s)


def outcome(data: bytes) -> Answer | Fault:
    """The complete answer, or what is wrong; any other exception is an error."""
    answer = asked()
    try:
        if not answer.feed(data, 0.0):
            answer.feed(b"", 1.0)
    except BadAnswer as bad:
        return bad.fault
    return answer


STARTS = [b"", HEAD + b"\r\n", HEAD + b"\r\ndata: ", HEAD + b"Transfer-Encoding: chunked\r\n\r\n"]


@settings(deadline=None)
@given(st.binary(max_size=400), st.sampled_from(STARTS))
def test_any_bytes_are_an_answer_or_a_named_fault(data: bytes, start: bytes) -> None:
    """Nothing else is ever raised, and after the end of the connection nothing is left open."""
    found = outcome(start + data)
    assert isinstance(found, Fault) or found.done


NAMES = st.sampled_from(["choices", "index", "text", "delta", "content", "error"])
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner)
)


@settings(deadline=None)
@given(JSON)
def test_any_json_is_a_chunk_or_a_named_fault(value: Any) -> None:
    """Types are checked, not assumed."""
    found = outcome(HEAD + b"\r\ndata: " + json.dumps(value).encode() + b"\n\ndata: [DONE]\n\n")
    assert found in (Fault.FORMAT, Fault.ERROR) or (isinstance(found, Answer) and found.done)


@pytest.mark.parametrize(
    "data",
    [
        b'data: {"choices": []}\n\n',
        b"data: {}\n\n",
        b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": null}}]}\n\n',
        b'data: {"choices": [{"index": 1, "text": "of another choice"}]}\n\n',
        b'data: {"choices": [], "usage": {"completion_tokens": 5}, "error": null}\n\n',
    ],
)
def test_chunks_without_text_are_no_tokens(data: bytes) -> None:
    """Roles, usage, other choices."""
    answer = outcome(HEAD + b"\r\n" + data + b"data: [DONE]\n\n")
    assert isinstance(answer, Answer)
    assert (answer.text, len(answer.times_s), answer.done) == ("", 0, True)


def test_an_event_with_nothing_in_it_is_no_json() -> None:
    """A field without a colon has an empty value."""
    assert outcome(HEAD + b"\r\ndata\n\ndata: [DONE]\n\n") is Fault.FORMAT


def test_data_lines_of_one_event_are_joined() -> None:
    """As the standard says, by a line feed; an event without its blank line never happened."""
    answer = feed(HEAD + b'\r\ndata: {"choices": [\ndata: {"text": "a"}]}\n\ndata: [DONE]\n', [])
    assert (answer.text, answer.done) == ("a", False)
    with pytest.raises(BadAnswer) as bad:
        answer.feed(b"", 1.0)
    assert bad.value.fault is Fault.CUT


@pytest.mark.parametrize(
    ("limits", "data"),
    [
        (Limits(answer_bytes=1000), b":\n" * 500),
        (Limits(line_bytes=100), b"data: " + b"x" * 100),
        (Limits(line_bytes=100), b"data: xxxxx\n" * 10),
        (Limits(pieces=100), b"\n" * 101),
    ],
)
def test_limits_hold_exactly_where_they_are(limits: Limits, data: bytes) -> None:
    """Too much is a fault, whether it comes at once or byte by byte."""
    for cuts in ([], list(range(5000))):
        with pytest.raises(BadAnswer) as bad:
            feed(HEAD + b"\r\n" + data, cuts, limits)
        assert bad.value.fault is Fault.SIZE

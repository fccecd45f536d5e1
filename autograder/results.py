"""The store of results: one JSON file per submission, suite and machine tier. The truth; gradebooks are made from it.

    results/<assignment>/<student>/<key>.json     findings, ended by the digest of all that stands before it
    results/.submissions/<SHA-256>.json           what was handed in, so that a result can be judged again (`replay`)

Files are written to a temporary name, synced and renamed, so that a killed process or a full disk leaves either the whole
result or none. A stored result in which one byte is not what was written is `Refused`, never taken and never overlooked; a
signature (`autograder.signing`) shows, beyond that, that somebody who holds the key wrote it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from autograder.errors import AutograderError
from autograder.finding import Finding
from autograder.spec import Assignment, SpecError
from autograder.submission import Submission

if TYPE_CHECKING:
    from autograder.signing import PublicKey, SigningKey

__all__ = [
    "Refused",
    "Result",
    "StoreError",
    "content_of",
    "copy_of",
    "keep",
    "kept",
    "key",
    "key_of",
    "load",
    "save",
    "set_aside",
]
__all__ += ["Verified", "verify"]

PREFIX = ".writing-"
SUBMISSIONS = ".submissions"
SEAL = re.compile(
    rb',\n "signed_by": "(?P<signed_by>ssh-ed25519 [A-Za-z0-9+/=]+)",\n "signature": "(?P<signature>[A-Za-z0-9+/=]+)"\Z'
)
DIGEST = re.compile(rb',\n "digest": "([0-9a-f]{64})"\n}\n\Z')
"""How a stored result ends. The digest covers every byte before this, the signature every byte before the seal."""


class StoreError(AutograderError):
    """A result could not be written. Nothing that was stored before is lost."""


class Refused(AutograderError):
    """A stored file that must not count. The text says whose it is and why; `state` is one word for tables."""

    def __init__(self, text: str, state: Literal["changed", "unsigned", "signed by another key"]) -> None:
        super().__init__(text)
        self.state = state


class IsolationRecord(BaseModel):
    """How student code was kept in during the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    level: int
    walls: tuple[str, ...]
    refused: tuple[str, ...]


class Result(BaseModel):
    """All findings of one submission under one suite on one machine, with what is needed to judge them again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[3] = 3
    """Version 1 had neither digest nor copy, version 2 neither spec nor `judged_with`."""
    assignment: str
    student: str
    source: str
    submission_hash: str
    submission_copy: str = Field(pattern="^[0-9a-f]{64}$")
    """SHA-256 and name of the copy of what was judged."""
    suite_hash: str
    release: str
    framework: str
    tier: Literal["cpu", "gpu"]
    seed: int
    judged_with: str = ""
    """The student whose identical submission was judged in place of this one, in the same run; never shown to students."""
    isolation: IsolationRecord
    machine: dict[str, object]
    models: dict[str, str]
    """SHA-256 of the manifest of each model that lay here; a manifest names every file of a model with its own."""
    seconds: float
    times: dict[str, float] = {}
    """Seconds of fork, start of workers and loading, and the number of calls; the rest are the checks and the judge's own."""
    withheld: tuple[str, ...]
    """Reasons that concern the whole submission."""
    remarks: tuple[str, ...]
    spec: Assignment
    """Points and thresholds as they were then: the suite's own may be others when the grade is questioned."""
    findings: tuple[Finding, ...]


def key(submission_hash: str, suite_hash: str, tier: str) -> str:
    """Name of the result of a submission under a suite on a kind of machine."""
    return hashlib.sha256(f"{submission_hash}\n{suite_hash}\n{tier}".encode()).hexdigest()[:32]


def key_of(result: Result) -> str:
    """Name of the result, by its content."""
    return key(result.submission_hash, result.suite_hash, result.tier)


def path(folder: Path, assignment: str, student: str, name: str) -> Path:
    return folder / assignment / student / f"{name}.json"


def load(file: Path, signer: PublicKey | None = None, *, at_home: bool = False) -> Result | None:
    """The result in `file`; `None` if there is no such file.

    Raises `Refused` if it cannot be read or is not, byte for byte, what was written; with a `signer` also if that key did
    not sign it; with `at_home` also if the file does not lie where its content belongs.
    """
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        if not file.is_symlink():
            return None
        raise _changed(file, "is a link that leads nowhere") from None
    except OSError as error:
        raise _changed(file, f"cannot be read, {error.strerror}") from None
    end = DIGEST.search(content)
    if end is None:
        raise _changed(file, "was changed after it was written, or an older version wrote it: no digest at its end")
    before = content[: end.start()]
    if hashlib.sha256(before).hexdigest().encode() != end[1]:
        raise _changed(file, "was changed after it was written: its digest does not fit its content")
    seal = SEAL.search(before)
    body = before[: seal.start()] if seal else before
    if signer is not None:
        _verify(file, body, seal, signer)
    try:
        result = Result.model_validate_json(body + b"}")
    except ValidationError as error:
        raise _changed(file, f"was written by another version of the autograder: {error.errors()[0]['msg']}") from None
    except SpecError as error:
        raise _changed(file, f"contradicts itself: {error}") from None
    where = (result.assignment, result.student, key_of(result))
    if at_home and where != (file.parent.parent.name, file.parent.name, file.stem):
        raise _changed(file, f"was put there by hand: its content is that of {result.student}, {result.assignment}")
    return result


def content_of(result: Result) -> bytes:
    """All of `result`, as it is stored; `Result.model_validate_json` reads it."""
    text = json.dumps(_strict(result.model_dump(mode="json")), indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode(errors="replace")


def save(file: Path, result: Result, signing_key: SigningKey | None = None) -> None:
    """Write `result`, signed if there is a key, so that `file` holds all of it or is as it was. Raises `StoreError`."""
    content = content_of(result).removesuffix(b"\n}")
    if signing_key is not None:
        seal = f',\n "signed_by": "{signing_key.public}",\n "signature": "{signing_key.sign(content)}"'
        content += seal.encode()
    digest = hashlib.sha256(content).hexdigest()
    _write(file, content + f',\n "digest": "{digest}"\n}}\n'.encode(), f"The result of {result.student}")


def keep(folder: Path, submission: Submission) -> str:
    """Keep a copy of what is judged, named by its SHA-256, which is returned. Equal ones are kept once.

    Raises `StoreError`.
    """
    digest, content = copy_of(submission)
    file = folder / SUBMISSIONS / f"{digest}.json"
    if not file.is_file() or file.read_bytes() != content:
        _write(file, content, f"A copy of {submission.source}")
    return digest


def copy_of(submission: Submission) -> tuple[str, bytes]:
    """The name and the content of the copy of a submission."""
    content = (json.dumps(dataclasses.asdict(submission), indent=1, sort_keys=True) + "\n").encode()
    return hashlib.sha256(content).hexdigest(), content


def kept(folder: Path, result: Result) -> Submission:
    """What was judged for `result`, from its copy. Raises `Refused` if the copy is gone or not what was judged."""
    file = folder / SUBMISSIONS / f"{result.submission_copy}.json"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Refused(
            f"The submission of {result.student} cannot be read again ({file}: {error.strerror}).", "changed"
        ) from None
    if hashlib.sha256(content).hexdigest() != result.submission_copy:
        raise Refused(f"The copy of the submission of {result.student} is not what was judged ({file}).", "changed")
    return TypeAdapter(Submission).validate_json(content)


@dataclass(frozen=True)
class Verified:
    """What became of one stored result: `state` is "fine" or that of the `Refused` whose text is `problem`."""

    file: Path
    state: str
    problem: str = ""


def verify(folder: Path, assignment: str, signer: PublicKey | None = None) -> Iterator[Verified]:
    """Look at every stored result of an assignment, and at the copies of what was judged. Changes nothing."""
    for file in sorted((folder / assignment).glob("*/*.json")):
        try:
            if result := load(file, signer, at_home=True):
                kept(folder, result)
                yield Verified(file, "fine")
        except Refused as error:
            yield Verified(file, error.state, str(error))


def set_aside(file: Path) -> Path:
    """Rename a refused file, so that another can take its place and nothing is lost; gives the new path.

    Raises `StoreError`.
    """
    number = 1
    while os.path.lexists(aside := file.with_name(f"{file.name}.refused-{number}")):
        number += 1
    try:
        return file.rename(aside)
    except OSError as error:
        raise StoreError(
            f"{file} cannot be renamed: {error.strerror}. Move it away by hand, then run again."
        ) from error


def sweep(folder: Path) -> int:
    """Remove what killed writers left; gives how many files that were."""
    left = list(folder.rglob(f"{PREFIX}*"))
    for file in left:
        file.unlink(missing_ok=True)
    return len(left)


def _changed(file: Path, why: str) -> Refused:
    return Refused(f"The result of {file.parent.name} ({file.name}) {why}.", "changed")


def _verify(file: Path, body: bytes, seal: re.Match[bytes] | None, signer: PublicKey) -> None:
    """Raise `Refused` unless `signer` signed `body`."""
    whose = f"The result of {file.parent.name} ({file.name})"
    if seal is None:
        raise Refused(f"{whose} is not signed, and only signed ones count here.", "unsigned")
    if seal["signed_by"].decode() != str(signer):
        raise Refused(f"{whose} is signed by another key than the one demanded.", "signed by another key")
    if not signer.verifies(body, seal["signature"].decode()):
        raise _changed(file, "was changed after it was signed: its signature does not fit its content")


def _write(file: Path, content: bytes, what: str) -> None:
    """Write all of `content`, for this user alone, or leave `file` as it was. Raises `StoreError`."""
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=PREFIX, dir=file.parent)
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        temporary = None
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(
            f"{what} cannot be stored: {error.strerror} ({file.parent}). "
            "Results stored before are whole. Make room or mend the permissions, then run the same command again.",
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _strict(data: object) -> object:
    """NaN and infinities as strings: JSON has no other way to keep them, and null would be a credit of all points."""
    if isinstance(data, dict):
        return {key: _strict(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_strict(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data

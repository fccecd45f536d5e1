"""The store of results: one JSON file per submission, suite and machine tier. The truth; gradebooks are made from it.

Files are written to a temporary name, synced and renamed, so that a killed process or a full disk leaves either the whole
result or none. A file that cannot be read counts as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from autograder.errors import AutograderError
from autograder.finding import Finding

__all__ = ["Result", "StoreError", "key", "load", "save"]

PREFIX = ".writing-"


class StoreError(AutograderError):
    """A result could not be written. Nothing that was stored before is lost."""


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

    schema_version: Literal[1] = 1
    assignment: str
    student: str
    source: str
    submission_hash: str
    suite_hash: str
    release: str
    framework: str
    tier: Literal["cpu", "gpu"]
    seed: int
    isolation: IsolationRecord
    machine: dict[str, object]
    models: dict[str, str]
    seconds: float
    times: dict[str, float] = {}
    """Seconds of fork, start of workers and loading, and the number of calls; the rest are the checks and the judge's own."""
    withheld: tuple[str, ...]
    """Reasons that concern the whole submission."""
    remarks: tuple[str, ...]
    findings: tuple[Finding, ...]


def key(submission_hash: str, suite_hash: str, tier: str) -> str:
    """Name of the result of a submission under a suite on a kind of machine."""
    return hashlib.sha256(f"{submission_hash}\n{suite_hash}\n{tier}".encode()).hexdigest()[:32]


def path(folder: Path, assignment: str, student: str, name: str) -> Path:
    return folder / assignment / student / f"{name}.json"


def load(file: Path) -> Result | None:
    """The result in `file`, `None` if there is none that is whole and can be read."""
    try:
        return Result.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        return None


def save(file: Path, result: Result) -> None:
    """Write `result` so that `file` holds all of it or is as it was. Raises `StoreError`."""
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=PREFIX, dir=file.parent)
        with open(descriptor, "wb") as stream:
            text = json.dumps(_strict(result.model_dump(mode="json")), indent=1, ensure_ascii=False, allow_nan=False)
            stream.write(text.encode(errors="replace") + b"\n")
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
            f"The result of {result.student} cannot be stored: {error.strerror} ({file.parent}). "
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


def sweep(folder: Path) -> int:
    """Remove what killed writers left; gives how many files that were."""
    left = list(folder.rglob(f"{PREFIX}*"))
    for file in left:
        file.unlink(missing_ok=True)
    return len(left)

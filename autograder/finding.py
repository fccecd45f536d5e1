"""What one run of one check established: outcomes and findings. Data only, shared by judge, store and pages."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["NOT_IMPLEMENTED", "Finding", "Outcome"]

NOT_IMPLEMENTED = "Not implemented yet."
"""The message where a stub still stands."""


class Outcome(StrEnum):
    """The closed list of what a check can establish. Only `PASSED` carries points on its own."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    BLOCKED = "BLOCKED"
    """Not run, because something it needs failed already (the task is missing, or used up its time)."""
    SKIPPED = "SKIPPED"
    """Not gradable on this machine; the grade is withheld."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """Too noisy to decide; measured again, the grade is withheld until then."""
    REVIEW = "REVIEW"
    """A person must look; the grade is withheld."""
    BROKEN = "BROKEN"
    """Our fault, never the student's; the grade is withheld."""


class Finding(BaseModel):
    """One check, one run. Texts from the submission are kept as they came and must be escaped when shown."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: str
    task: str
    outcome: Outcome
    hidden: bool
    sentence: str = Field(description="What the check establishes; the first line of its docstring.")
    message: str = Field("", description="Why it did not pass. Shown to students for public checks only.")
    hint: str = Field("", description="The author's next step for the student; never derived from the submission.")
    value: str | None = Field(None, description="What the submission gave.")
    expected: str | None = Field(None, description="The value or property expected instead.")
    printed: str = Field("", description="The last lines that the submission printed during the check.")
    credit: float | None = Field(
        None, description="Share of the points of a performance check that FAILED, 0 to below 1."
    )
    seconds: float = Field(0.0, description="Wall time of the check, by the judge's clock.")
    measurements: dict[str, float] = Field(
        default_factory=dict,
        description="What was measured; units stand in the names, ratios have none. `speedup` is t_reference / t_submission.",
    )

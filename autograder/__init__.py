"""Autograded assignments on efficient LLM inference and serving.

In a released notebook: `from autograder import check`. Everything else is the command `autograder`.
Nothing is imported here: this module is the one that student code's workers see too.
"""

from typing import Any

__all__ = ["check"]


def __getattr__(name: str) -> Any:
    if name == "check":
        from autograder.students.notebook import check

        return check
    raise AttributeError(f"module 'autograder' has no attribute {name!r}")

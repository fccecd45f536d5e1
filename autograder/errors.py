"""The base of every error that a user can cause or mend: its text says what, why and what next."""

__all__ = ["AutograderError"]


class AutograderError(Exception):
    """Shown as a sentence, without a traceback."""

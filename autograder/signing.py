"""Keys that results are signed with: Ed25519, in the file format of OpenSSH.

    keys new PATH          writes PATH (private, 0600) and PATH.pub (one line, for the course's configuration)
    grade --sign PATH      signs every result that it stores
    verify --public-key    checks with a key that lies outside the course, where nobody who writes the course can replace it

Not covered: passphrases, expiry, revocation, several keys at a time. A key that is lost or leaked is replaced by another one;
results are then judged again. `ssh-keygen -t ed25519` makes keys that serve as well.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from autograder.courses.course import CONFIG
from autograder.errors import AutograderError

__all__ = ["KeyFileError", "PublicKey", "SigningKey", "new"]

PURPOSE = b"inference-autograder result\n"
"""Stands before what is signed: a signature made for something else can never pass for that of a result."""
OTHERS = 0o077


class KeyFileError(AutograderError):
    """A key cannot be used. The text says why and what to do."""


class PublicKey:
    """What signatures are checked with. `str` gives its line, as in an OpenSSH `.pub` file, without the comment."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        self._line = key.public_bytes(*form).decode()

    def __str__(self) -> str:
        return self._line

    @classmethod
    def parse(cls, line: str) -> PublicKey:
        """The key of a line "ssh-ed25519 AAAA... comment". Raises `KeyFileError`."""
        try:
            key = serialization.load_ssh_public_key(line.strip().encode())
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise KeyFileError(
                f"{line.strip()[:80]!r} is no public key. It must be one line that begins with ssh-ed25519: "
                "the content of the file PATH.pub that `autograder keys new PATH` wrote."
            )
        return cls(key)

    @classmethod
    def read(cls, path: Path) -> PublicKey:
        """The key in a `.pub` file. Raises `KeyFileError`, `OSError`."""
        return cls.parse(path.read_text(encoding="utf-8", errors="replace"))

    def verifies(self, content: bytes, signature: str) -> bool:
        """Whether `signature` (base64) is this key's for `content`."""
        try:
            self._key.verify(base64.b64decode(signature, validate=True), PURPOSE + content)
        except (InvalidSignature, binascii.Error):
            return False
        return True


class SigningKey:
    """A private key, read from `path`. Raises `KeyFileError` if others may read the file or it lies inside a course."""

    def __init__(self, path: Path) -> None:
        _refuse_course(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise KeyFileError(
                f"{path} cannot be read: {error.strerror}. `autograder keys new PATH` makes a key."
            ) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise KeyFileError(f"{path} is no file. `autograder keys new PATH` makes a key.")
            if os.name == "posix" and status.st_mode & OTHERS:
                raise KeyFileError(
                    f"Others may read or write {path} (mode {stat.S_IMODE(status.st_mode):o}), so its signatures prove "
                    "nothing. Make a new key, or, if nobody used this one: chmod 600."
                )
            content = os.read(descriptor, 1 << 16)
        finally:
            os.close(descriptor)
        try:
            key = serialization.load_ssh_private_key(content, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyFileError(
                f"{path} is no private Ed25519 key in OpenSSH's format, or it has a passphrase, which is not supported. "
                "`autograder keys new PATH` makes one that serves."
            )
        self._key = key
        self.public = PublicKey(key.public_key())

    def sign(self, content: bytes) -> str:
        """The signature of `content`, in base64."""
        return base64.b64encode(self._key.sign(PURPOSE + content)).decode()


def new(path: Path) -> PublicKey:
    """Make a key: `path`, for this user alone, and `path`.pub. Nothing is overwritten. Raises `KeyFileError`."""
    _refuse_course(path)
    public_path = path.with_name(f"{path.name}.pub")
    key = Ed25519PrivateKey.generate()
    public = PublicKey(key.public_key())
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    written: list[Path] = []
    try:
        for file, content, mode in (
            (path, key.private_bytes(*form), 0o600),
            (public_path, f"{public} autograder\n".encode(), 0o644),
        ):
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            written.append(file)
            with open(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(descriptor)
    except OSError as error:
        for file in written:
            with contextlib.suppress(OSError):
                file.unlink()
        why = "there is one already; nothing is overwritten" if isinstance(error, FileExistsError) else error.strerror
        raise KeyFileError(f"{error.filename or path} cannot be written: {why}. Choose another path.") from None
    return public


def _refuse_course(path: Path) -> None:
    """Raise `KeyFileError` if `path` lies in a course: whoever can read the results could then sign others."""
    for folder in path.absolute().resolve().parents:
        if (folder / CONFIG).is_file():
            raise KeyFileError(
                f"{path} lies inside the course {folder}. Who can write results must not be able to sign them: "
                "keep the key outside, in a folder of your own."
            )

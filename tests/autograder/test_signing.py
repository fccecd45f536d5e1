"""Stored results that were changed, forged or moved; keys; and seeds that stay in the instructor's results."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from autograder import results, signing
from autograder.authoring import corpus
from autograder.finding import Finding, Outcome
from autograder.results import Refused, Result
from autograder.runs import run
from autograder.runs.progress import Steps
from autograder.sandboxing.sandbox import ProcessSandbox, SandboxUnavailable
from autograder.signing import KeyFileError, PublicKey, SigningKey

if TYPE_CHECKING:
    from conftest import Course

POSIX = pytest.mark.skipif(os.name != "posix", reason="permissions")
WRONG = "def double(n): return 0"


def sample(**fields: Any) -> Result:
    """A result with something in every field."""
    found = {"check": "test_a", "task": "first", "outcome": Outcome.FAILED, "hidden": True, "sentence": "Größe \n\\ 2"}
    known: dict[str, Any] = {
        "assignment": "sample", "student": "ada", "source": "sample.ipynb", "submission_hash": "a" * 64,
        "submission_copy": "c" * 64, "suite_hash": "b" * 64, "release": "1", "framework": "0", "tier": "cpu", "seed": 7,
        "isolation": {"name": "namespaces", "level": 3, "walls": ["pid"], "refused": []},
        "machine": {"cpu": "a cpu", "packages": {"torch": "2"}}, "models": {"m": "d" * 64}, "seconds": 1.5,
        "withheld": ["a reason"], "remarks": ["a remark"], "spec": {"name": "sample", "title": "Sample", "tasks": []},
        "findings": [Finding.model_validate(found)],
    }  # fmt: skip
    return Result.model_validate(known | fields)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of two keys."""
    folder = tmp_path_factory.mktemp("keys")
    paths = [folder / "one", folder / "other"]
    for path in paths:
        signing.new(path)
    return paths


@pytest.fixture(params=["unsigned", "signed"])
def written(request: pytest.FixtureRequest, tmp_path: Path, keys: list[Path]) -> Path:
    """A stored result."""
    file = tmp_path / "x.json"
    results.save(file, sample(), SigningKey(keys[0]) if request.param == "signed" else None)
    return file


def sealed(body: str, digest_of: str | None = None) -> bytes:
    """What `body` looks like when it is stored by hand, with a digest that fits (or is that of another text)."""
    digest = hashlib.sha256((digest_of or body).encode()).hexdigest()
    return f'{body},\n "digest": "{digest}"\n}}\n'.encode()


def body_of(file: Path) -> str:
    """All of a stored result before its digest."""
    return file.read_text().partition(',\n "digest"')[0]


# ------------------------------------------------------------------------------------------------ one byte


def test_any_bit_of_a_stored_result_counts(written: Path) -> None:
    """At every position, white space, digest and signature included, another byte makes the result refused."""
    content = written.read_bytes()
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        written.write_bytes(changed)
        with pytest.raises(Refused) as refused:
            results.load(written)
        assert refused.value.state == "changed"
    written.write_bytes(content)
    assert results.load(written) == sample()


@given(data=st.data())
def test_no_small_change_passes(
    tmp_path_factory: pytest.TempPathFactory, keys: list[Path], data: st.DataObject
) -> None:
    """Bytes replaced, inserted, removed, repeated or swapped anywhere are found."""
    file = tmp_path_factory.mktemp("store") / "x.json"
    signed = data.draw(st.booleans())
    results.save(file, sample(), SigningKey(keys[0]) if signed else None)
    content = file.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 8)))
    changed = content[:start] + data.draw(st.binary(max_size=8)) + content[end:]
    file.write_bytes(changed)
    if changed == content:
        assert results.load(file) is not None
    else:
        with pytest.raises(Refused):
            results.load(file)


def test_a_result_that_was_formatted_anew_is_refused(written: Path) -> None:
    """The same data in other white space is not what was written."""
    written.write_text(json.dumps(json.loads(written.read_bytes()), indent=2) + "\n")
    with pytest.raises(Refused, match="was changed after it was written"):
        results.load(written)


def test_a_result_is_json_with_its_digest_in_it(written: Path) -> None:
    """Other programs read the file as JSON, and can check it with any SHA-256."""
    data = json.loads(written.read_bytes())
    assert data["digest"] == hashlib.sha256(body_of(written).encode()).hexdigest()
    assert data["findings"][0]["sentence"] == "Größe \n\\ 2"


# ------------------------------------------------------------------------------------------------ signatures


class TestSignature:
    """What a key adds to a digest that anybody can compute."""

    @pytest.fixture
    def file(self, tmp_path: Path, keys: list[Path]) -> Path:
        """A signed result where it belongs."""
        result = sample()
        stem = results.key(result.submission_hash, result.suite_hash, result.tier)
        file = results.path(tmp_path, "sample", "ada", stem)
        results.save(file, result, SigningKey(keys[0]))
        return file

    @staticmethod
    def state(file: Path, key: Path) -> str:
        """What a holder of the public key says of the file."""
        try:
            assert results.load(file, SigningKey(key).public, at_home=True) is not None
        except Refused as refused:
            return refused.state
        return "fine"

    def test_its_own_key_accepts_it_and_another_does_not(self, file: Path, keys: list[Path]) -> None:
        """The signature is of this key for this content."""
        assert self.state(file, keys[0]) == "fine"
        assert self.state(file, keys[1]) == "signed by another key"

    def test_the_public_half_is_enough_to_check(self, file: Path, keys: list[Path]) -> None:
        """Who holds the `.pub` file can check, and `str` of a key is its line in that file."""
        public = PublicKey.read(keys[0].with_name("one.pub"))
        assert results.load(file, public) == sample()
        assert str(public) == str(SigningKey(keys[0]).public)
        assert str(PublicKey.parse(str(public))) == str(public)

    def test_an_edit_with_a_new_digest_is_found(self, file: Path, keys: list[Path]) -> None:
        """Whoever edits the file can make the digest fit, and not the signature."""
        file.write_bytes(sealed(body_of(file).replace("FAILED", "PASSED")))
        forged = results.load(file)
        assert forged is not None, "a digest is no secret: without a key this cannot be found"
        assert forged.findings[0].outcome is Outcome.PASSED
        assert self.state(file, keys[0]) == "changed"

    def test_a_signature_that_was_cut_off_is_missed(self, file: Path, keys: list[Path]) -> None:
        """Without a signature a result counts as unsigned where signatures are demanded."""
        file.write_bytes(sealed(body_of(file).partition(',\n "signed_by"')[0]))
        assert results.load(file) is not None
        assert self.state(file, keys[0]) == "unsigned"

    def test_a_signature_of_another_result_does_not_fit(self, file: Path, keys: list[Path]) -> None:
        """A good signature under other content is worth nothing."""
        other = file.with_name("other.json")
        results.save(other, sample(seed=8), SigningKey(keys[0]))
        seal = body_of(other).partition(',\n "signed_by"')[2]
        body = body_of(file).partition(',\n "signed_by"')[0]
        file.write_bytes(sealed(f'{body},\n "signed_by"{seal}'))
        assert self.state(file, keys[0]) == "changed"

    def test_a_foreign_signature_under_our_name_does_not_fit(self, file: Path, keys: list[Path]) -> None:
        """To write another key's line into a file gives no signature of that key."""
        other = SigningKey(keys[1])
        body = body_of(file).partition(',\n "signed_by"')[0]
        seal = f'"signed_by": "{SigningKey(keys[0]).public}",\n "signature": "{other.sign(body.encode())}"'
        file.write_bytes(sealed(f"{body},\n {seal}"))
        assert self.state(file, keys[0]) == "changed"

    def test_a_good_result_of_somebody_else_is_refused(self, file: Path, keys: list[Path]) -> None:
        """A signed result counts for the student, the assignment and the suite that it is about, in its own place only."""
        for wrong in (
            file.parent.with_name("bob") / file.name,
            file.parents[1].with_name("other") / "ada" / file.name,
            file.with_name(f"{'0' * 32}.json"),
        ):
            wrong.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, wrong)
            assert self.state(wrong, keys[0]) == "changed"
            assert results.load(wrong, SigningKey(keys[0]).public) == sample(), "anywhere else it can be looked at"

    def test_a_signature_says_what_it_is_for(self, keys: list[Path]) -> None:
        """What the same key signed for another purpose is no signature of a result."""
        private = serialization.load_ssh_private_key(keys[0].read_bytes(), None)
        assert isinstance(private, ed25519.Ed25519PrivateKey)
        bare = base64.b64encode(private.sign(b"text")).decode()
        public = SigningKey(keys[0]).public
        assert not public.verifies(b"text", bare)
        assert public.verifies(b"text", SigningKey(keys[0]).sign(b"text"))
        assert not public.verifies(b"text", "no base64!")


# ------------------------------------------------------------------------------------------------ key files


def openssh(key: rsa.RSAPrivateKey) -> bytes:
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    return key.private_bytes(*form, serialization.NoEncryption())


class TestKeyFiles:
    """Where keys may lie and what they must be."""

    @POSIX
    def test_a_new_key_is_for_its_owner_alone(self, tmp_path: Path) -> None:
        """The private half has mode 0600 whatever the umask, the public half is one line."""
        before = os.umask(0)
        try:
            public = signing.new(tmp_path / "key")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
        assert (tmp_path / "key.pub").read_text() == f"{public} autograder\n"
        assert str(SigningKey(tmp_path / "key").public) == str(public)

    def test_no_two_keys_are_the_same(self, keys: list[Path]) -> None:
        """Keys come from the system's random numbers."""
        assert str(SigningKey(keys[0]).public) != str(SigningKey(keys[1]).public)

    @pytest.mark.parametrize("there", ["key", "key.pub"])
    def test_nothing_is_overwritten(self, tmp_path: Path, there: str) -> None:
        """A file of either name stays as it is, and no half of a key is left."""
        (tmp_path / there).write_text("mine")
        with pytest.raises(KeyFileError, match="nothing is overwritten"):
            signing.new(tmp_path / "key")
        assert [path.name for path in tmp_path.iterdir()] == [there]
        assert (tmp_path / there).read_text() == "mine"

    @pytest.mark.parametrize("where", ["key", "results/key", "a/b/c/key", "link"])
    def test_no_key_lies_in_a_course(self, tmp_path: Path, where: str) -> None:
        """Neither made nor used there, also not through a link."""
        inside = tmp_path / "course" / "nbgrader_config.py"
        inside.parent.mkdir()
        inside.write_text("")
        path = tmp_path / "course" / where
        if where == "link":
            (tmp_path / "course" / "sub").mkdir()
            (tmp_path / "link").symlink_to(tmp_path / "course" / "sub")
            path = tmp_path / "link" / "key"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pytest.raises(KeyFileError, match="lies inside the course"):
            signing.new(path)
        signing.new(tmp_path / "fine")
        shutil.copy(tmp_path / "fine", path)
        with pytest.raises(KeyFileError, match="lies inside the course"):
            SigningKey(path)

    @POSIX
    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601, 0o620])
    def test_a_key_that_others_may_reach_is_refused(self, tmp_path: Path, mode: int) -> None:
        """A key that a group or all may read, write or execute proves nothing."""
        signing.new(tmp_path / "key")
        (tmp_path / "key").chmod(mode)
        with pytest.raises(KeyFileError, match="Others may read or write"):
            SigningKey(tmp_path / "key")

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\xff\x00",
            b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
            openssh(rsa.generate_private_key(65537, 2048)),
        ],
        ids=["empty", "bytes", "broken", "RSA"],
    )
    def test_what_is_no_plain_ed25519_key_is_refused(self, tmp_path: Path, content: bytes) -> None:
        """Other kinds of keys, and anything else, are told in a sentence."""
        (tmp_path / "key").write_bytes(content)
        (tmp_path / "key").chmod(0o600)
        with pytest.raises(KeyFileError, match="no private Ed25519 key"):
            SigningKey(tmp_path / "key")

    @POSIX
    def test_folders_pipes_and_nothing_are_refused(self, tmp_path: Path) -> None:
        """Neither waits for a writer nor shows a traceback."""
        os.mkfifo(tmp_path / "pipe", 0o600)
        for name in (".", "pipe", "missing", "missing/key"):
            with pytest.raises(KeyFileError, match="autograder keys new"):
                SigningKey(tmp_path / name)
        with pytest.raises(KeyFileError, match="No such file"):
            signing.new(tmp_path / "missing" / "key")

    @pytest.mark.parametrize("line", ["", "x", "ssh-ed25519 AAAA", "ssh-rsa AAAA", "ssh-ed25519", "\x00é"])
    def test_what_is_no_public_key_is_refused(self, line: str) -> None:
        """A line that is none says what it should be."""
        with pytest.raises(KeyFileError, match="must be one line that begins with ssh-ed25519"):
            PublicKey.parse(line)

    @pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="OpenSSH is not installed")
    def test_openssh_understands_our_keys_and_we_its(self, tmp_path: Path) -> None:
        """`ssh-keygen` gives the same public half for our key; its own keys sign, unless they have a passphrase."""
        public = signing.new(tmp_path / "ours")
        said = subprocess.run(["ssh-keygen", "-y", "-f", tmp_path / "ours"], capture_output=True, text=True, check=True)
        assert said.stdout.split()[:2] == str(public).split()
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "theirs"], check=True)
        theirs = SigningKey(tmp_path / "theirs")
        assert PublicKey.read(tmp_path / "theirs.pub").verifies(b"text", theirs.sign(b"text"))
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", tmp_path / "locked"], check=True)
        with pytest.raises(KeyFileError, match="has a passphrase, which is not supported"):
            SigningKey(tmp_path / "locked")


# ------------------------------------------------------------------------------------------------ in a course


@pytest.fixture
def key(course: Course) -> Path:
    """A key beside the course, made by the command."""
    path: Path = course.root.with_name("key")
    ran = course.autograder("keys", "new", str(path))
    assert ran.code == 0, ran.said
    assert str(SigningKey(path).public) in ran.said
    return path


def demand(course: Course, key: Path) -> None:
    """Make the course accept results of this key only."""
    config = course.root / "nbgrader_config.py"
    text = config.read_text()
    line = f"isolation='sandbox', public_key={str(SigningKey(key).public)!r})"
    config.write_text(re.sub(r"isolation='sandbox'.*\)", line, text))
    assert line in config.read_text()


def forge(file: Path) -> None:
    """Give all points, and make the digest fit."""
    file.write_bytes(sealed(body_of(file).replace('"FAILED"', '"PASSED"')))


def test_a_changed_result_is_told_kept_aside_and_judged_again(course: Course) -> None:
    """`grade` says whose result it was; what it found stays beside the new one; the gradebook has the true points."""
    for student in ("ada", "bob"):
        course.solve(student, double=WRONG)
    course.grade("--no-import")
    (file,) = course.results("ada")
    changed = file.read_bytes().replace(b'"outcome": "FAILED"', b'"outcome": "PASSED"', 1)
    file.write_bytes(changed)
    checked = course.autograder("verify", "tiny")
    assert checked.code == 1
    assert "2 results, 1 not fine" in checked.said
    assert re.search(r"ada +│ \w+\.json +│ changed", checked.said)
    for arguments, number, fresh in (((), 1, 1), (("--force",), 2, 2)):
        file.write_bytes(changed)
        ran = course.grade(*arguments)
        assert ran.code == 0, ran.said
        said = f"ada: The result of ada ({file.name}) was changed after it was written: its digest does not fit its content."
        assert f"{said} It is judged again; what was there is kept as {file.name}.refused-{number}." in ran.said
        assert f"{fresh} graded now, {2 - fresh} before, 1 stored before but refused" in ran.said
        assert file.with_name(f"{file.name}.refused-{number}").read_bytes() == changed
        assert results.load(file) is not None
        assert {student: recorded.total for student, recorded in course.book().items()} == {"ada": 5.0, "bob": 5.0}
    assert course.autograder("verify", "tiny").code == 0
    assert "Nothing to do" in course.grade().said


def test_stock_nbgrader_never_enters_a_changed_result(course: Course) -> None:
    """`nbgrader autograde` meets a changed result: the submission is judged again, the true points are entered."""
    course.solve("ada", double=WRONG)
    course.grade("--no-import")
    (file,) = course.results("ada")
    file.write_bytes(file.read_bytes().replace(b'"FAILED"', b'"PASSED"'))
    ran = course.nbgrader("autograde", "tiny")
    assert "was changed after it was written" in ran.said
    assert course.total("ada") == 5.0
    assert file.with_name(f"{file.name}.refused-1").exists()


def test_a_course_with_a_key_takes_signed_results_only(course: Course, key: Path) -> None:
    """Unsigned or forged results are neither taken nor entered nor overwritten, until somebody with the key grades."""
    course.solve("ada", double=WRONG)
    course.solve("bob")
    assert course.grade("--no-import").code == 0
    demand(course, key)
    before = {file: file.read_bytes() for file in course.results()}
    checked = course.autograder("verify", "tiny")
    assert (checked.code, checked.said.count("│ unsigned")) == (1, 2)
    ran = course.grade()
    assert ran.code == 1
    assert "is not signed, and only signed ones count here" in ran.line("ada:")
    assert "autograder grade tiny --sign KEYFILE" in ran.line("bob:")
    said = course.nbgrader("autograde", "tiny", code=1).said
    assert "autograder grade tiny --sign KEYFILE" in said
    assert not course.book()
    assert {file: file.read_bytes() for file in course.results()} == before
    ran = course.grade("--sign", str(key))
    assert ran.code == 0, ran.said
    assert "2 graded now, 0 before, 2 stored before but refused" in ran.said
    assert course.total("ada") == 5.0
    assert course.autograder("verify", "tiny").code == 0
    again = course.grade()
    assert "Nothing to do" in again.said, "who has no key can enter what is signed"
    (file,) = course.results("ada")
    forge(file)
    forged = course.grade()
    assert forged.code == 1
    assert "was changed after it was signed" in forged.line("ada: The result")
    assert course.total("ada") == 5.0


def test_a_key_outside_the_course_finds_what_one_inside_it_would_not(course: Course, key: Path) -> None:
    """Who can write the course can replace its public key and sign anew; `--public-key` with one's own copy tells."""
    course.solve("ada", double=WRONG)
    demand(course, key)
    assert course.grade("--sign", str(key)).code == 0
    intruder = course.root.with_name("intruder")
    signing.new(intruder)
    (file,) = course.results("ada")
    forge(file)
    forged = results.load(file)
    assert forged is not None
    results.save(file, forged, SigningKey(intruder))
    demand(course, intruder)
    assert course.autograder("verify", "tiny").code == 0, "the course's own key was replaced"
    told = course.autograder("verify", "tiny", "--public-key", f"{key}.pub")
    assert told.code == 1
    assert "│ signed by another key" in told.said
    wrong = course.grade("--sign", str(key))
    assert wrong.code == 1
    assert "is not the private key of the public_key" in wrong.said


def test_signing_without_a_key_in_the_course_is_demanded_for_that_run(course: Course, key: Path) -> None:
    """`--sign` accepts what this key signed, and judges again what nobody signed."""
    course.solve("ada")
    course.grade("--no-import")
    assert "1 graded now, 0 before, 1 stored before but refused" in course.grade("--sign", str(key)).said
    assert "0 graded now, 1 before" in course.grade("--sign", str(key)).said
    assert "0 graded now, 1 before" in course.grade().said


@pytest.mark.parametrize("bad", ["inside", "open", "missing"])
def test_a_bad_key_stops_the_run_before_anything_is_judged(course: Course, key: Path, bad: str) -> None:
    """The sentence says what is wrong; no result is written."""
    course.solve("ada")
    path = key
    if bad == "inside":
        path = course.root / "key"
        shutil.copy(key, path)
    elif bad == "open":
        key.chmod(0o644)
    else:
        path = key.with_name("nothing")
    ran = course.grade("--sign", str(path))
    assert ran.code == 1
    words = {"inside": "lies inside the course", "open": "Others may read or write", "missing": "cannot be read"}
    assert ran.said.startswith("autograder: ")
    assert words[bad] in ran.said
    assert not course.results()
    made = course.autograder("keys", "new", str(course.root / "results" / "key"))
    assert made.code == 1
    assert "lies inside the course" in made.said


def test_nothing_is_signed_where_student_code_could_read_the_key(
    kv_cache: Course, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without walls a submission runs as the user who holds the key: the run stops before the first one."""
    course = kv_cache.copy(tmp_path / "own")
    course.hand_in("ada", corpus.notebook("kv_cache", corpus.reference("kv_cache").answers))
    signing.new(tmp_path / "key")
    monkeypatch.setattr(run, "best_sandbox", lambda *_, **__: ProcessSandbox())
    monkeypatch.chdir(course.root)
    with pytest.raises(SandboxUnavailable, match="could read the key"):
        run.grade_course(
            "kv_cache", course.root, students=[], force=False, isolation="process", enter=False, workers=1,
            steps=Steps(Console(quiet=True), plain=True), sign=tmp_path / "key",
        )  # fmt: skip
    assert not course.results()


def test_verify_looks_at_the_copies_too(course: Course) -> None:
    """A copy of a submission that was changed or removed is not fine: its result could not be judged again."""
    course.solve("ada")
    course.grade("--no-import")
    (copy,) = (course.root / "results" / ".submissions").iterdir()
    content = copy.read_bytes()
    copy.write_bytes(content.replace(b"def", b"deF", 1))
    assert "The copy of the submission of ada is not what was judged" in course.autograder("verify", "tiny").said
    copy.unlink()
    ran = course.autograder("verify", "tiny")
    assert (ran.code, "1 results, 1 not fine" in ran.said) == (1, True)
    course.grade("--no-import", "--force")
    assert copy.read_bytes() == content
    assert course.autograder("verify", "tiny").code == 0


def test_verify_without_results_is_no_success(course: Course) -> None:
    """Nothing looked at is nothing shown to be fine; an unknown assignment is told."""
    assert course.autograder("verify", "tiny").code == 1
    assert "There is no assignment 'tinny'" in course.autograder("verify", "tinny").said


# ------------------------------------------------------------------------------------------------ what stays inside


@POSIX
def test_results_are_closed_to_others(course: Course, key: Path) -> None:
    """Every file below `results/`, kept and refused ones included, has mode 0600 and the folder 0700, under any umask."""
    course.solve("ada", double=WRONG)
    before = os.umask(0)
    try:
        course.grade("--no-import")
        for file in course.results():
            file.write_bytes(file.read_bytes() + b" ")
        course.grade("--sign", str(key))
    finally:
        os.umask(before)
    folder = course.root / "results"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}
    assert len(modes) == 4, modes  # .lock, a copy, a result, a refused result
    assert set(modes.values()) == {0o600}, modes
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_seed_is_in_the_result_and_nowhere_else(course: Course, key: Path) -> None:
    """Feedback, autograded notebooks, release, gradebook, exports and all logs are without it, in any notation."""
    course.solve("ada", double=WRONG)
    course.solve("bob", layers="def layers(n): return 1 / 0")
    said = [course.grade("--sign", str(key)).said]
    said += [course.nbgrader(*command).said for command in (("generate_feedback", "tiny"), ("export",))]
    said += [course.autograder("verify", "tiny").said, course.nbgrader("autograde", "tiny", "--force").said]
    files = [path for path in course.root.parent.rglob("*") if path.is_file() and "results" not in path.parts]
    assert {"feedback", "autograded", "release"} <= {part for path in files for part in path.parts}
    content = b"\n".join([*(path.read_bytes() for path in files), *(text.encode() for text in said)])
    seeds = [json.loads(file.read_bytes())["seed"] for file in course.results()]
    assert len(set(seeds)) == 2
    for seed in seeds:
        assert 2**40 < seed < 2**63, "63 bits of the system's; less than 41 of them come once in four million times"
        for form in (str(seed), f"{seed:x}", f"{seed:X}", f"{seed:,}", f"{seed:_}"):
            assert form.encode() not in content


LOOK = """
import gc, os, re, sys

PLANTED = {"seed": [987654321987654321]}


def double(n):
    seen = [repr(each) for each in gc.get_objects() if type(each) in (dict, list, tuple)]
    frame = sys._getframe()
    while frame:
        seen.append(repr(frame.f_locals))
        frame = frame.f_back
    seen += [repr(os.environ), repr(sys.argv)]
    raise ValueError(" ".join(sorted({number for text in seen for number in re.findall("[0-9]{17,19}", text)})[::-1]))
"""


def test_the_seed_is_not_in_the_worker(course: Course) -> None:
    """Student code that prints all that it can see of its process, its memory and its environment prints no seed."""
    course.solve("ada", double=LOOK)
    course.grade("--no-import")
    (file,) = course.results("ada")
    seed = json.loads(file.read_bytes())["seed"]
    message = course.findings("ada")["test_double"]["message"]
    assert "987654321987654321" in message, "it looks where numbers would be"
    assert str(seed) not in message


def test_the_library_is_loaded_by_those_who_sign_only() -> None:
    """Students who check their work do not wait for cryptography."""
    code = "import autograder.cli, autograder.students.selfcheck, autograder.results, sys; print('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

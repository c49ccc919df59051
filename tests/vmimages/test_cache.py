"""Two builders at once, and one that was killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from harness import command, wait
from vmimages import cache as caches
from vmimages.bound import bound
from vmimages.cache import Cache
from vmimages.errors import VmError

ROOT = Path(__file__).parents[2]
BUILDER = """
import sys, time
from pathlib import Path
from vmimages.cache import Cache
cache = Cache(Path(sys.argv[1]))
with cache.locked(lambda line: print(line, flush=True)), cache.aside() as aside:
    (aside / "half").mkdir(mode=0o500)
    print("inside", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def builder(cache: Cache, seconds: float) -> list[str]:
    return [sys.executable, "-c", BUILDER, str(cache.path), str(seconds)]


def asides(cache: Cache) -> list[Path]:
    return list(cache.path.glob(f"{caches.ASIDE}*"))


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(caches.VARIABLE, "/somewhere")
    assert caches.default() == Path("/somewhere")
    monkeypatch.delenv(caches.VARIABLE)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert caches.default() == Path("/var/cache/btrsync-vmimages")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/foo/cache")
    assert caches.default() == Path("/home/foo/cache/btrsync-vmimages")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/foo")
    assert caches.default() == Path("/home/foo/.cache/btrsync-vmimages")


def test_a_cache_that_cannot_be_made_is_told_with_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(VmError, match="cannot be made: Not a directory") as caught:
        Cache(tmp_path / "file").ensure()
    assert caught.value.hint is not None and caches.VARIABLE in caught.value.hint


def test_a_second_builder_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with command.spawn(builder(cache, 1.5), cwd=ROOT) as first:
        wait.until(lambda: "inside" in first.stdout, timeout_s=10, what="the first builder has the lock")
        said: list[str] = []
        with cache.locked(said.append):
            assert first.wait(5) == 0
        assert said == [f"waiting for another builder to finish with {tmp_path}"]
    assert asides(cache) == []


def test_a_killed_builder_leaves_asides_that_the_next_one_removes(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with command.spawn(builder(cache, 60), cwd=ROOT) as killed:
        wait.until(lambda: "inside" in killed.stdout, timeout_s=10, what="the builder has the lock")
        killed.kill()
        killed.wait(10)
    assert len(asides(cache)) == 1
    said: list[str] = []
    with cache.locked(said.append):
        assert asides(cache) == []
    assert said == []


def test_what_a_killed_builder_started_ends_with_it() -> None:
    script = (
        "from harness import command; from vmimages.bound import bound; import sys\n"
        "with command.spawn(bound(['sleep', '60'])) as process: print(process.pid, flush=True); process.wait(60)"
    )
    with command.spawn([sys.executable, "-c", script], cwd=ROOT) as parent:
        wait.until(lambda: parent.stdout.endswith("\n"), timeout_s=10, what="the child runs")
        child = Path("/proc") / parent.stdout.strip()
        wait.until(lambda: (child / "comm").read_text() == "sleep\n", timeout_s=5, what="it is sleep")
        os.kill(parent.pid, signal.SIGKILL)
        wait.until(lambda: not child.exists(), timeout_s=5, what="the child is gone")


def test_a_bound_command_is_the_command_itself() -> None:
    assert command.run(bound(["echo", "one", "two words"])).stdout == "one two words\n"


def test_what_was_used_last_is_kept(tmp_path: Path) -> None:
    for age_s, name in enumerate(["newest", "newer", "old", "oldest"]):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time(), time.time() - age_s * 60))
    caches.keep_newest(tmp_path, 2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["newer", "newest"]

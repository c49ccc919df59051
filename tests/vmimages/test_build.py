"""What an image is known by; and one image built in truth, from the cache where it is there."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness import command
from vmimages import build, python, resolution, root, spec
from vmimages import cache as caches
from vmimages.__main__ import main
from vmimages.cache import Cache
from vmimages.errors import VmError
from vmimages.packages import Package
from vmimages.resolution import Resolution

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmimages.image import Image

RESOLVED = Resolution(
    groups={"root": [Package("bash", "5.2", 1, "aa")], "uml": [], "qemu": [], "libc": []},
    wheels={"rich.whl": "cc"},
    python="3.11",
    progs="6.2",
    asked="",
    checked_s=0,
)

# ----------------------------------------------------------------------------------------- values


def test_an_image_is_known_by_all_that_it_is_made_of() -> None:
    key = build.root_key(RESOLVED)
    newer = {**RESOLVED.groups, "root": [Package("bash", "5.3", 1, "bb")]}
    assert build.root_key(dataclasses.replace(RESOLVED, groups=newer)) != key
    assert build.root_key(dataclasses.replace(RESOLVED, wheels={"rich.whl": "dd"})) != key
    assert build.root_key(dataclasses.replace(RESOLVED, checked_s=5, asked="x")) == key


def test_an_image_is_known_by_its_guests_files(tmp_path: Path) -> None:
    key = build.image_key("root", build.GUEST)
    shutil.copy(build.GUEST / "init", tmp_path / "init")
    assert build.image_key("root", tmp_path) == key
    (tmp_path / "init").write_text("#!/bin/sh\n")
    assert build.image_key("root", tmp_path) != key
    assert build.image_key("another", build.GUEST) != key


@pytest.mark.parametrize(
    ("age_s", "is_fresh"),
    [(0, True), (23 * 3600, True), (25 * 3600, False), (-3600, False)],
    ids=["now", "today", "yesterday", "a clock that was put back"],
)
def test_packages_are_looked_for_again_after_a_day(age_s: int, is_fresh: bool) -> None:
    resolved = dataclasses.replace(RESOLVED, checked_s=time.time() - age_s)
    assert resolved.is_fresh is is_fresh


def test_wheels_are_what_the_tests_ask_for_and_no_linters() -> None:
    names = {re.split(r"[^a-z-]", word)[0] for word in python.wanted()}
    assert {"pytest", "pytest-testinfra", "hypothesis", "pybtrfs", "msgspec", "click", "rich"} <= names
    assert not {"ruff", "mypy", "tox", "btrsync-suite"} & names


def test_a_suite_has_one_python_and_an_old_one_gets_no_wheels() -> None:
    assert python.parse_version(["python3", "python3.11", "python3.11-minimal", "bash"]) == "3.11"
    with pytest.raises(VmError, match="one Python among the packages, not 2"):
        python.parse_version(["python3.11", "python3.12"])
    assert not python.is_new_enough("3.9")
    assert python.is_new_enough("3.14")


def test_a_kernel_that_an_image_does_not_have_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = spec.parse("one", {"title": "t", "sources": ["s"], "kernels": {"uml": {"package": "u"}}}, [])
    monkeypatch.setattr(spec, "load", lambda _name: only)
    with pytest.raises(VmError, match="the image one has no kernel for qemu"):
        build.build_image("one", backends=["qemu"], cache=Cache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def test_a_host_without_a_tool_is_told_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(build.TOOLS, "mke9fs", "e9fsprogs")
    with pytest.raises(VmError, match="images cannot be built without mke9fs") as caught:
        build.build_image("bookworm", cache=Cache(tmp_path))
    assert caught.value.hint == "apt-get install e9fsprogs"


def test_downloads_that_no_image_consists_of_are_removed_and_no_others(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.ensure()
    (cache.resolved / "bookworm.json").write_text(json.dumps(dataclasses.asdict(RESOLVED)))
    for file in (
        cache.debs / "aa.deb",
        cache.debs / "bb.deb",
        cache.wheels / "rich.whl",
        cache.wheels / "old.whl",
    ):
        file.touch()
    resolution.remove_unused(cache)
    left = {file.name for folder in (cache.debs, cache.wheels) for file in folder.iterdir()}
    assert left == {"aa.deb", "rich.whl"}


def test_clean_leaves_packages_and_clean_all_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(caches.VARIABLE, str(tmp_path / "cache"))
    assert main(["clean"]) == 0
    assert "there is nothing in" in capsys.readouterr().out
    cache = Cache(tmp_path / "cache")
    cache.ensure()
    (cache.resolved / "bookworm.json").write_text(json.dumps(dataclasses.asdict(RESOLVED)))
    (cache.debs / "aa.deb").write_bytes(bytes(3 << 20))
    (cache.images / "bookworm/key").mkdir(parents=True)
    (cache.images / "bookworm/key/root.ext4").write_bytes(bytes(2 << 20))
    assert main(["clean"]) == 0
    assert "removed 2 MiB" in capsys.readouterr().out
    assert (cache.debs / "aa.deb").exists() and not cache.images.exists()
    assert main(["clean", "--all"]) == 0
    assert "removed 3 MiB" in capsys.readouterr().out
    assert [file.name for file in cache.path.iterdir()] == ["lock"]


def test_the_command_line_tells_a_mistake_in_a_sentence_and_a_hint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["build", "windows"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "vmimages: there is no image 'windows'",
        f"hint: images: {', '.join(spec.names())}",
    ]


# ------------------------------------------------------------------------------------ a real image


@pytest.fixture(scope="module")
def image() -> Image:
    """Return Debian 12, built if this machine's cache does not have it: a minute then."""
    return build.build_image("bookworm")


def inside(image: Image, request: str) -> str:
    return command.run(["debugfs", "-R", request, image.root_disk]).stdout


@pytest.fixture
def own_cache() -> Iterator[Cache]:
    """Return a cache of our own with all that was downloaded and unpacked, on the same filesystem."""
    shared = Cache(caches.default())
    own = Cache(Path(tempfile.mkdtemp(prefix="test-", dir=shared.path)))
    own.debs, own.wheels, own.apt = shared.debs, shared.wheels, shared.apt
    own.resolved, own.roots = shared.resolved, shared.roots
    yield own
    caches.remove(own.path)


def test_an_image_is_ready_again_at_once_without_any_network(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    began = time.monotonic()
    said: list[str] = []
    assert build.build_image("bookworm", backends=["uml", "qemu"], say=said.append) == image
    assert time.monotonic() - began < 2
    assert said == []


def test_the_root_holds_what_a_guest_needs(image: Image) -> None:
    assert inside(image, f"cat /{root.GUEST}/init") == (build.GUEST / "init").read_text()
    assert 'Fast link dest: "/usr/lib/vmimages/init"' in inside(image, "stat /usr/sbin/init")
    for kernel in image.kernels.values():
        assert "dm-crypt.ko:" in inside(image, f"cat /usr/lib/modules/{kernel.version}/modules.dep")
    packages = f"/usr/local/lib/python{image.python}/dist-packages"
    assert "pybtrfs" in inside(image, f"ls {packages}")
    assert re.search(r"__init__\.cpython-311\.pyc", inside(image, f"ls {packages}/_pytest/__pycache__"))
    assert "sshd:x:101:" in inside(image, "cat /etc/passwd")
    command.run(["e2fsck", "-fn", image.root_disk])


def test_user_mode_linux_runs_with_its_own_libraries(image: Image) -> None:
    kernel = image.kernels["uml"]
    assert command.run([kernel.path, "--version"], cwd=kernel.cwd, env=kernel.environment).stdout.strip() == (
        kernel.version
    )


def test_another_init_costs_no_other_root(
    image: Image, own_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tmp_path / "init"
    changed.write_text("#!/bin/sh\necho changed\n")
    monkeypatch.setattr(build, "GUEST", tmp_path)
    roots = sorted((own_cache.roots / "bookworm").iterdir())
    other = build.build_image("bookworm", cache=own_cache, say=lambda _line: None)
    assert other.key != image.key
    assert inside(other, f"cat /{root.GUEST}/init") == changed.read_text()
    assert inside(image, f"cat /{root.GUEST}/init") != changed.read_text()
    assert sorted((own_cache.roots / "bookworm").iterdir()) == roots


def test_mirrors_that_are_out_of_reach_leave_what_is_there(
    image: Image, own_cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.resolved = tmp_path / "resolved"
    shutil.copytree(caches.Cache(caches.default()).resolved, own_cache.resolved)
    own_cache.apt = tmp_path / "apt"
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    said: list[str] = []
    known = resolution.held(own_cache, spec.load("bookworm"))
    assert known
    with own_cache.locked(said.append):
        now = resolution.current(own_cache, spec.load("bookworm"), refresh=True, say=said.append)
    assert now == known
    assert re.match(
        r"bookworm: built from what was downloaded before: apt-get update for bookworm failed", said[-1]
    )

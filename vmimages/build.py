"""An image from its description: root disk and kernels, kept under the hash of what they are made of."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import command
from vmimages import cache as caches
from vmimages import kernels, python, resolution, root, rootdisk, spec
from vmimages.cache import Cache
from vmimages.errors import VmError
from vmimages.image import Image, Kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from vmimages.image import BackendName
    from vmimages.resolution import Resolution
    from vmimages.spec import ImageSpec

HERE = Path(__file__).parent
GUEST = HERE / "guest"
BUILDERS = ("build", "kernels", "packages", "python", "root", "rootdisk")
"""Modules whose code decides what comes out."""
GUEST_FILES = ("init",)
KEPT_IMAGES = 3
KEPT_ROOTS = 2
ROOT_DISK = "root.ext4"
FACTS = "facts.json"
# fmt: off
TOOLS = {"apt-get": "apt", "dpkg-deb": "dpkg", "tar": "tar", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs",
         "setpriv": "util-linux"}
# fmt: on


def build_image(
    name: str,
    *,
    backends: Collection[BackendName] = (),
    refresh: bool = False,
    cache: Cache | None = None,
    say: Callable[[str], None] | None = None,
) -> Image:
    """Return an image ready to boot; built if the cache has none of the very same making.

    backends: kernels that it must have. refresh: look for newer packages even if that was done within
    a day. say: is told what takes time; by default, standard error. Raises VmError with one sentence.
    """
    wanted = spec.load(name)
    missing = sorted(set(backends) - set(wanted.kernels))
    if missing:
        raise VmError(f"the image {name} has no kernel for {', '.join(missing)}")
    cache = cache or Cache(caches.default())
    say = say or _say
    known = resolution.held(cache, wanted)
    if known and not refresh and known.is_fresh and (image := _ready(cache, wanted, known)):
        return image
    _check_host()
    with cache.locked(say):
        now = resolution.current(cache, wanted, refresh=refresh, say=say)
        image = _ready(cache, wanted, now)
        if image is None:
            try:
                _build(cache, wanted, now, say)
            except command.CommandFailed as error:
                raise VmError(f"the image {name} could not be built: {error}") from error
            image = _ready(cache, wanted, now)
    assert image is not None, "what was just built is not there"
    return image


def find_image(name: str, cache: Cache | None = None) -> Image | None:
    """Return an image if the cache has it as it was last resolved, whether newer packages exist or not."""
    wanted = spec.load(name)
    cache = cache or Cache(caches.default())
    known = resolution.held(cache, wanted)
    return _ready(cache, wanted, known) if known else None


def root_key(packages: Resolution) -> str:
    """Return the hash of all that the root is made of: the packages, the wheels, and this code."""
    code = [(HERE / f"{module}.py").read_text() for module in BUILDERS]
    words: list[Any] = [packages.groups, packages.wheels, code]
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:24]


def image_key(root: str, guest: Path) -> str:
    """Return the hash of an image: its root and the guest's own files, which lie in `guest`."""
    words = [root, *((name, (guest / name).read_text()) for name in GUEST_FILES)]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:24]


def _ready(cache: Cache, wanted: ImageSpec, packages: Resolution) -> Image | None:
    key = image_key(root_key(packages), GUEST)
    folder = cache.images / wanted.name / key
    try:
        facts = json.loads((folder / FACTS).read_text())
    except FileNotFoundError:
        return None
    with contextlib.suppress(PermissionError):  # another's cache may be read
        os.utime(folder)  # the most recently used are kept
    found: dict[BackendName, Kernel] = {}
    for backend, version in facts["versions"].items():
        home = folder / backend
        if backend == "uml":
            found[backend] = Kernel(home / "linux.uml", None, version, {}, home)
        else:
            found[backend] = Kernel(home / "vmlinuz", None, version, {}, None)
    return Image(wanted.name, key, folder / ROOT_DISK, found, packages.python, packages.progs)


def _build(cache: Cache, wanted: ImageSpec, packages: Resolution, say: Callable[[str], None]) -> None:
    began = time.monotonic()
    key = root_key(packages)
    made = cache.roots / wanted.name / key
    made.parent.mkdir(exist_ok=True)
    if not made.exists():
        say(f"{wanted.name}: unpacking {len(packages.groups['root'])} packages")
        with cache.aside() as aside:
            _make_root(cache, packages, aside)
            aside.rename(made)
        caches.keep_newest(made.parent, KEPT_ROOTS)
    with cache.aside() as aside:
        # What lies there is never written to, so both can have the same files.
        shutil.copytree(made, aside, copy_function=_link, dirs_exist_ok=True)
        (aside / ROOT_DISK).unlink()
        rootdisk.copy(made / ROOT_DISK, aside / ROOT_DISK)
        rootdisk.add(aside / ROOT_DISK, root.GUEST, {name: GUEST / name for name in GUEST_FILES})
        final = cache.images / wanted.name / image_key(key, GUEST)
        final.parent.mkdir(exist_ok=True)
        aside.rename(final)
    caches.keep_newest(final.parent, KEPT_IMAGES)
    say(f"{wanted.name}: built in {time.monotonic() - began:.1f} s")


def _make_root(cache: Cache, packages: Resolution, target: Path) -> None:
    """Fill the directory `target`: the root disk without the guest's own files, the kernels, some facts."""
    tree = target / "tree"
    groups = packages.groups
    root.make(cache, groups["root"], tree)
    versions: dict[str, str] = {}
    if "uml" in groups:
        versions["uml"] = kernels.uml(cache, groups["uml"], groups["libc"], target / "uml", tree)
    if "qemu" in groups:
        versions["qemu"] = kernels.qemu(cache, groups["qemu"], target / "qemu", tree)
    if packages.wheels:
        python.install(cache, packages.wheels, packages.python, tree)
    python.compile_all(packages.python, tree)
    rootdisk.make(tree, target / ROOT_DISK)
    caches.remove(tree)
    (target / FACTS).write_text(json.dumps({"versions": versions}))


def _check_host() -> None:
    """Raise VmError if this host cannot build images, with what is missing."""
    if platform.machine() != "x86_64":
        raise VmError(f"images are of Debian's amd64, which this machine ({platform.machine()}) does not run")
    path = command.environment()["PATH"]
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if missing:
        needed = " ".join(sorted({TOOLS[tool] for tool in missing}))
        raise VmError(
            f"images cannot be built without {', '.join(missing)}", hint=f"apt-get install {needed}"
        )


def _link(source: str, target: str) -> None:
    os.link(source, target)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

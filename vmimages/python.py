"""What the tests import, as wheels for the guest's own Python; its bytecode compiled beforehand.

Host commands used: pip, of the Python that runs this.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import command
from vmimages import root
from vmimages.bound import bound
from vmimages.errors import VmError
from vmimages.packages import network_environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmimages.cache import Cache

CHECKOUT = Path(__file__).parents[1]
CONSTRAINTS = CHECKOUT / "constraints.txt"
OLDEST = (3, 11)
EXTRAS = ("harness", "test")
GLIBC_MINORS = range(36, 16, -1)
"""Debian 12 has glibc 2.36; wheels for an older one run too."""
DOWNLOAD_TIMEOUT_S = 600
COMPILE_TIMEOUT_S = 300
NOT_COMPILED = r"/(test|tests|idlelib|lib2to3|turtledemo)/"


def requirements(project: Mapping[str, Any]) -> list[str]:
    """Return what pyproject.toml asks for to run the tests, without what lints them."""
    extras = project["optional-dependencies"]
    words = [*project["dependencies"], *(word for extra in EXTRAS for word in extras[extra])]
    return sorted(word for word in words if not word.startswith(f"{project['name']}["))


def wanted() -> list[str]:
    """Return `requirements` of this checkout; raises VmError outside of one."""
    file = CHECKOUT / "pyproject.toml"
    if not file.exists() or not CONSTRAINTS.exists():
        raise VmError("images are built from a clone of the project, for its pyproject.toml names the wheels")
    return requirements(tomllib.loads(file.read_text())["project"])


def is_new_enough(version: str) -> bool:
    """Return whether btrsync and its tests run on this Python ("3.11") at all."""
    major, minor = version.split(".")
    return (int(major), int(minor)) >= OLDEST


def parse_version(names: Sequence[str]) -> str:
    """Return the version of a suite's Python from its packages: `python3.11` is one of them."""
    found = [match[1] for name in names if (match := re.fullmatch(r"python(3\.\d+)", name))]
    if len(found) != 1:
        raise VmError(f"there must be one Python among the packages, not {len(found)}")
    return found[0]


def fetch(cache: Cache, version: str) -> dict[str, str]:
    """Download those wheels for a Python that the cache lacks; return the hashes of all by file name.

    All versions are pinned, so the network is asked only if the cache has not all of them. pip judges
    `python_version` in a requirement's condition by the Python it runs on, not the guest's.
    """
    with cache.aside() as aside:
        words = ["--dest", str(aside), "--find-links", str(cache.wheels), "--constraint", str(CONSTRAINTS)]
        words += [*_platform(version), *wanted()]
        try:
            _pip("download", "--no-index", *words)
        except VmError:
            _pip("download", *words)
        found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in aside.glob("*.whl")}
        for name in found:
            (aside / name).replace(cache.wheels / name)
    return dict(sorted(found.items()))


def are_there(cache: Cache, wheels: Mapping[str, str]) -> bool:
    """Return whether the cache holds these wheels."""
    return all((cache.wheels / name).exists() for name in wheels)


def install(cache: Cache, wheels: Mapping[str, str], version: str, tree: Path) -> None:
    """Install wheels where Debian's Python looks for what the administrator added."""
    for name, sha256 in wheels.items():
        if hashlib.sha256((cache.wheels / name).read_bytes()).hexdigest() != sha256:
            raise VmError(f"{cache.wheels / name} is no longer what was downloaded", hint="build --refresh")
    target = tree / "usr/local/lib" / f"python{version}" / "dist-packages"
    files = [str(cache.wheels / name) for name in wheels]
    words = ["--no-index", "--no-deps", "--no-compile", "--target", str(target)]
    _pip("install", *words, *_platform(version), *files)


def compile_all(version: str, tree: Path) -> None:
    """Compile all of the guest's Python with its own interpreter, so that it need not at every boot."""
    folders = [tree / "usr/lib" / name for name in (f"python{version}", "python3/dist-packages")]
    local = tree / "usr/local/lib" / f"python{version}" / "dist-packages"
    folders += [local] if local.exists() else []
    # One process: a child would be started without its own linker. The guest's paths, not ours, go in.
    # fmt: off
    words = ["-I", "-S", "-m", "compileall", "-q", "-j1", "-x", NOT_COMPILED, "-s", str(tree), "-p", "/",
             *map(str, folders)]
    # fmt: on
    program = tree / "usr/bin" / f"python{version}"
    command.run(bound(root.guest_argv(tree, program, *words)), timeout_s=COMPILE_TIMEOUT_S)


def _platform(version: str) -> list[str]:
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC_MINORS]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    words = [word for platform in platforms for word in ("--platform", platform)]
    return ["--only-binary=:all:", "--implementation", "cp", "--python-version", version, *words]


def _pip(*words: str) -> None:
    argv = [sys.executable, "-m", "pip", words[0], "--quiet", "--disable-pip-version-check", *words[1:]]
    done = command.run(bound(argv), ok=None, timeout_s=DOWNLOAD_TIMEOUT_S, env=network_environment())
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        raise VmError(f"pip {words[0]} failed: {'; '.join(said) or done.stderr.strip()[-400:]}")

"""What an image is made of, as vmimages/images/NAME.toml says it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vmimages.errors import VmError
from vmimages.image import BackendName

if TYPE_CHECKING:
    from collections.abc import Mapping

BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
IMAGES = Path(__file__).parent / "images"
KERNEL_KEYS = {"package", "image"}
IMAGE_KEYS = {"title", "sources", "packages", "kernels"}


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """Where a kernel comes from.

    package: as apt-get takes it, so `NAME/SUITE` too. image: whose sources it is taken from, by
    default the image's own.
    """

    package: str
    image: str


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """One image: Debian suites, packages and the kernels it can be booted with."""

    name: str
    title: str
    sources: tuple[str, ...]
    packages: tuple[str, ...]
    kernels: Mapping[BackendName, KernelSpec]


def names(folder: Path = IMAGES) -> list[str]:
    """Return the names of all images."""
    return sorted(file.stem for file in folder.glob("*.toml"))


def load(name: str, folder: Path = IMAGES) -> ImageSpec:
    """Return the description of an image; raises VmError if there is none, or if it is wrong."""
    if name not in names(folder):
        raise VmError(f"there is no image {name!r}", hint=f"images: {', '.join(names(folder))}")
    try:
        raw = tomllib.loads((folder / f"{name}.toml").read_text())
        return parse(name, raw, common_packages((folder / "packages.txt").read_text()))
    except (tomllib.TOMLDecodeError, ValueError) as error:
        raise VmError(f"{folder / name}.toml: {error}") from None


def common_packages(text: str) -> list[str]:
    """Return the packages that every image has; what follows # is a comment."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def parse(name: str, raw: Mapping[str, Any], common: list[str]) -> ImageSpec:
    """Return an image's description from its TOML; raises ValueError with one sentence.

    common: packages of every image. One that the image names with a suite (`btrfs-progs/SUITE`)
    replaces the common one.
    """
    _only(raw, IMAGE_KEYS, "the image")
    own = _words(raw, "packages")
    named = {word.partition("/")[0] for word in own}
    sources = _words(raw, "sources")
    if not sources:
        raise ValueError("sources must name at least one suite")
    kernels = raw.get("kernels", {})
    unknown = [backend for backend in kernels if backend not in BACKENDS]
    if unknown or not kernels:
        raise ValueError(f"kernels must be some of {', '.join(BACKENDS)}, not {', '.join(unknown) or 'none'}")
    return ImageSpec(
        name=name,
        title=_word(raw, "title"),
        sources=sources,
        packages=(*(word for word in common if word not in named), *own),
        kernels={
            backend: _kernel(name, kernels[backend], backend) for backend in BACKENDS if backend in kernels
        },
    )


def _kernel(name: str, raw: Mapping[str, Any], backend: str) -> KernelSpec:
    _only(raw, KERNEL_KEYS, f"kernels.{backend}")
    image = _word(raw, "image") if "image" in raw else name
    return KernelSpec(package=_word(raw, "package"), image=image)


def _only(raw: Mapping[str, Any], known: set[str], what: str) -> None:
    if unknown := set(raw) - known:
        raise ValueError(f"{what} has no setting {', '.join(sorted(unknown))}")


def _word(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{key} must be a text")
    return value


def _words(raw: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = raw.get(key, [])
    if not isinstance(value, list) or not all(isinstance(word, str) and word for word in value):
        raise ValueError(f"{key} must be a list of texts")
    return tuple(value)

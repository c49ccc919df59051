"""`python -m vmimages list`, `build` and `clean`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmimages import cache as caches
from vmimages import packages, resolution, spec
from vmimages.build import build_image, find_image
from vmimages.cache import Cache

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from vmimages.image import Image

MIB = 1 << 20


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add our commands to a command line; each sets `run`, which takes the words and returns a status."""
    listing = commands.add_parser("list", help="show the images, and what is built")
    listing.set_defaults(run=list_images)
    building = commands.add_parser("build", help="build images, or find them built")
    building.add_argument("images", nargs="*", metavar="IMAGE", help="by default all of them")
    building.add_argument("--refresh", action="store_true", help="look for newer packages now")
    building.set_defaults(run=build_images)
    cleaning = commands.add_parser("clean", help="remove what was built, and packages of no use any more")
    cleaning.add_argument("--all", action="store_true", help="also all that was downloaded")
    cleaning.set_defaults(run=clean)


def list_images(_words: argparse.Namespace) -> int:
    """Show each image in a line or two."""
    print(f"cache: {caches.default()}")
    for name in spec.names():
        image = find_image(name)
        print(f"{name:<20}{spec.load(name).title}: {described(image) if image else 'not built'}")
    return 0


def build_images(words: argparse.Namespace) -> int:
    """Build the images named, or all."""
    for name in words.images:
        spec.load(name)  # a name that is none is told before the first image is built
    for name in words.images or spec.names():
        began = time.monotonic()
        image = build_image(name, refresh=words.refresh)
        print(f"{name:<20}ready in {time.monotonic() - began:.1f} s: {described(image)}")
    return 0


def clean(words: argparse.Namespace) -> int:
    """Remove the images; a running machine keeps the files that it has open."""
    cache = Cache(caches.default())
    if not cache.path.exists():
        print(f"there is nothing in {cache.path}")
        return 0
    before = size_bytes(cache.path)
    with cache.locked(print):
        for folder in (cache.images, cache.roots):
            caches.remove(folder)
        if words.all:
            packages.forget(cache)
        else:
            resolution.remove_unused(cache)
    print(f"removed {(before - size_bytes(cache.path)) // MIB} MiB from {cache.path}")
    return 0


def described(image: Image) -> str:
    """Return what an image has, in one line."""
    kernels = ", ".join(f"{backend} {kernel.version}" for backend, kernel in image.kernels.items())
    used = image.root_disk.stat().st_blocks * 512 // MIB
    return (
        f"{kernels}; btrfs-progs {image.progs}, Python {image.python}; {used} MiB; {image.root_disk.parent}"
    )


def size_bytes(folder: Path) -> int:
    """Return the disk space of all files in a directory, those with several names once."""
    files = {}
    for file in folder.rglob("*"):
        status = file.lstat()
        files[status.st_ino] = status.st_blocks * 512
    return sum(files.values())

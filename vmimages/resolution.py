"""Which packages and wheels an image consists of today: resolved, kept, looked up again now and then."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmimages import python, spec
from vmimages.errors import VmError
from vmimages.packages import Archive, Package, path_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmimages.cache import Cache
    from vmimages.spec import ImageSpec

FRESH_S = 24 * 3600
LIBC = "libc6"


@dataclass(frozen=True, slots=True)
class Resolution:
    """What an image consists of.

    groups: packages of "root", of the kernels "uml" and "qemu", of the "libc" that linux.uml needs.
    wheels: hashes by file name. asked: hash of what was asked for. checked_s: when the indexes were
    last fetched, in seconds since 1970.
    """

    groups: dict[str, list[Package]]
    wheels: dict[str, str]
    python: str
    progs: str
    asked: str
    checked_s: float

    def is_fresh(self, now_s: float) -> bool:
        """Return whether the indexes are younger than a day; a clock that was put back makes them old."""
        return 0 <= now_s - self.checked_s < FRESH_S


def asked(wanted: ImageSpec) -> str:
    """Return a hash of all that a resolution depends on but the mirrors."""
    sources = {name: spec.load(name).sources for name in {kernel.image for kernel in wanted.kernels.values()}}
    constraints = python.CONSTRAINTS.read_text()
    words = [dataclasses.asdict(wanted), sources, python.wanted(), constraints]
    return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()


def held(cache: Cache, wanted: ImageSpec) -> Resolution | None:
    """Return what the cache knows of an image, unless something else was asked for then."""
    try:
        raw = json.loads((cache.resolved / f"{wanted.name}.json").read_text())
        resolution = _from_json(raw)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return resolution if resolution.asked == asked(wanted) else None


def current(cache: Cache, wanted: ImageSpec, *, refresh: bool, say: Callable[[str], None]) -> Resolution:
    """Return what an image consists of, with everything downloaded; only under the cache's lock.

    refresh: fetch the indexes even if they are younger than a day. Where they cannot be fetched,
    what is there is used, and said.
    """
    known = held(cache, wanted)
    if known and not refresh and known.is_fresh(time.time()) and _is_complete(cache, known):
        return known
    try:
        resolution = _resolve(
            cache, wanted, say, update=refresh or known is None or not known.is_fresh(time.time())
        )
    except VmError as error:
        if known is None or not _is_complete(cache, known):
            raise
        day = time.strftime("%F", time.localtime(known.checked_s))
        say(f"{wanted.name}: the packages of {day} are used, for newer ones cannot be had: {error}")
        return known
    with cache.aside() as aside:
        written = aside / "resolution"
        written.write_text(json.dumps(dataclasses.asdict(resolution)))
        written.replace(cache.resolved / f"{wanted.name}.json")
    return resolution


def _is_complete(cache: Cache, resolution: Resolution) -> bool:
    packages = [package for group in resolution.groups.values() for package in group]
    return all(path_of(cache, package).exists() for package in packages) and python.are_there(
        cache, resolution.wheels
    )


def _resolve(cache: Cache, wanted: ImageSpec, say: Callable[[str], None], *, update: bool) -> Resolution:
    archives: dict[str, Archive] = {}

    def archive(name: str) -> Archive:
        if name not in archives:
            opened = archives[name] = Archive.open(cache, name, spec.load(name).sources)
            if update or opened.is_empty:
                say(f"{wanted.name}: fetching the package lists of {name}")
                opened.update()
        return archives[name]

    own = archive(wanted.name)
    groups = {"root": own.resolve(wanted.packages)}
    origins = {"root": own}
    for backend, kernel in wanted.kernels.items():
        origins[backend] = archive(kernel.image)
        groups[backend] = origins[backend].kernel(kernel.package)
    if "uml" in groups:
        origins["libc"] = origins["uml"]
        groups["libc"] = origins["libc"].named(LIBC)
    say(f"{wanted.name}: {len(groups['root'])} packages, downloading those that are not here yet")
    for name, group in groups.items():
        origins[name].fetch(group)
    names = [package.name for package in groups["root"]]
    version = python.parse_version(names)
    wheels = python.fetch(cache, version) if python.is_new_enough(version) else {}
    progs = next(package.version for package in groups["root"] if package.name == "btrfs-progs")
    return Resolution(
        groups=groups,
        wheels=wheels,
        python=version,
        progs=progs.partition("-")[0],
        asked=asked(wanted),
        checked_s=time.time(),
    )


def _from_json(raw: dict[str, Any]) -> Resolution:
    groups = {name: [Package(*words) for words in group] for name, group in raw.pop("groups").items()}
    return Resolution(groups=groups, **raw)

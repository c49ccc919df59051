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
    from pathlib import Path

    from vmimages.cache import Cache
    from vmimages.spec import ImageSpec

FRESH_S = 24 * 3600
RETRY_S = 3600
"""Where the mirrors could not be reached, they are asked again after an hour, not at each build."""
LIBC = "libc6"


@dataclass(frozen=True, slots=True)
class Resolution:
    """What an image consists of.

    groups: packages of "root", of the kernels "uml" and "qemu", of the "libc" that linux.uml needs.
    wheels: hashes by file name. asked: hash of what was asked for. checked_s: when the oldest of the
    indexes was fetched, in seconds since 1970, or a time that lets us ask for a newer one in an hour.
    """

    groups: dict[str, list[Package]]
    wheels: dict[str, str]
    python: str
    progs: str
    asked: str
    checked_s: float

    @property
    def is_fresh(self) -> bool:
        """Whether the indexes are younger than a day."""
        return is_recent(self.checked_s)


def is_recent(when_s: float) -> bool:
    """Return whether a time in seconds since 1970 was within the last day; one to come was not."""
    return 0 <= time.time() - when_s < FRESH_S


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
    if known and not _is_complete(cache, known):
        known = None
    if known and known.is_fresh and not refresh:
        return known
    try:
        resolution = _resolve(cache, wanted, say, refresh=refresh)
    except VmError as error:
        if known is None:
            raise
        say(f"{wanted.name}: built from what was downloaded before: {error}")
        return known
    with cache.aside() as aside:
        written = aside / "resolution"
        written.write_text(json.dumps(dataclasses.asdict(resolution)))
        written.replace(cache.resolved / f"{wanted.name}.json")
    return resolution


def remove_unused(cache: Cache) -> None:
    """Remove downloads that no image consists of any longer; only under the cache's lock."""
    used: set[Path] = set()
    for file in cache.resolved.glob("*.json"):
        known = _from_json(json.loads(file.read_text()))
        used |= {path_of(cache, package) for group in known.groups.values() for package in group}
        used |= {cache.wheels / name for name in known.wheels}
    for folder in (cache.debs, cache.wheels):
        for file in folder.iterdir():
            if file not in used:
                file.unlink()


def _is_complete(cache: Cache, resolution: Resolution) -> bool:
    packages = [package for group in resolution.groups.values() for package in group]
    return all(path_of(cache, package).exists() for package in packages) and python.are_there(
        cache, resolution.wheels
    )


def _resolve(cache: Cache, wanted: ImageSpec, say: Callable[[str], None], *, refresh: bool) -> Resolution:
    archives: dict[str, Archive] = {}

    def archive(name: str) -> Archive:
        if name not in archives:
            archives[name] = Archive.open(cache, name, spec.load(name).sources)
            if refresh or not is_recent(archives[name].updated_s):
                _update(archives[name], name, say)
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
        checked_s=max(min(one.updated_s for one in archives.values()), time.time() - FRESH_S + RETRY_S),
    )


def _update(archive: Archive, name: str, say: Callable[[str], None]) -> None:
    """Fetch the indexes of an image's suites; old ones are better than none."""
    say(f"{name}: fetching the package lists")
    try:
        archive.update()
    except VmError as error:
        if not archive.updated_s:
            raise
        day = time.strftime("%F", time.localtime(archive.updated_s))
        say(f"{name}: the package lists of {day} are used, for there are no newer ones: {error}")


def _from_json(raw: dict[str, Any]) -> Resolution:
    groups = {name: [Package(*words) for words in group] for name, group in raw.pop("groups").items()}
    return Resolution(groups=groups, **raw)

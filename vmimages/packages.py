"""Debian packages without root: apt with a private state resolves and verifies, we keep what it downloads.

Host commands used: `apt-get`, `apt-cache`, `apt-config`, `dpkg-deb`, `tar`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

from harness import command
from vmimages.bound import bound
from vmimages.cache import remove
from vmimages.errors import VmError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vmimages.cache import Cache

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRRORS = {
    "debian": "http://deb.debian.org/debian",
    "debian-security": "http://deb.debian.org/debian-security",
}
UPDATE_TIMEOUT_S = 300
RESOLVE_TIMEOUT_S = 60
DOWNLOAD_TIMEOUT_S = 1800
UNPACK_TIMEOUT_S = 120
URI_LINE = re.compile(r"'[^']+' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})")
INHERITED = re.compile(r"(?:Acquire(?!::(?:IndexTargets|Languages|Changelogs)\b)|APT::Sandbox)::")
"""What of the host's apt settings holds for us too: proxies, limits and checks of its transport."""
PASSED_ON = re.compile(r"(?i:(?:https?|ftp|all|no)_proxy)|PIP_\w+|SSL_CERT_\w+|REQUESTS_CA_BUNDLE")
"""How this host reaches its registries, for the commands that download."""
KERNEL_PARTS = re.compile(r"(linux-(?:image|binary|modules)-\S+) \(= ([^)]+)\)")


class Package(NamedTuple):
    """One .deb, as the signed index describes it."""

    name: str
    version: str
    size_bytes: int
    sha256: str


def network_environment() -> dict[str, str]:
    """Return what a command needs of our environment to reach the registries as this host does."""
    return {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name)}


def parse_uris(text: str) -> list[Package]:
    """Return the packages that `apt-get --print-uris` names, sorted."""
    packages = []
    for line in text.splitlines():
        if match := URI_LINE.fullmatch(line.strip()):
            name, version, _ = match["file"].removesuffix(".deb").split("_")
            packages.append(Package(name, unquote(version), int(match["size"]), match["sha256"]))
    return sorted(packages)


def parse_mirrors(text: str) -> dict[str, str]:
    """Return the host's own mirrors of Debian and of its security updates, by the end of their path.

    text: `apt-get indextargets --format '$(REPO_URI)'`.
    """
    found = dict(MIRRORS)
    for uri in reversed(text.split()):
        end = urlsplit(uri).path.rstrip("/").rpartition("/")[2]
        if end in found:
            found[end] = uri.rstrip("/")
    return found


def format_sources(suites: Sequence[str], mirrors: dict[str, str]) -> str:
    """Return a sources.list of these suites; everything in it is checked against Debian's keys."""
    lines = []
    for suite in suites:
        mirror = mirrors["debian-security" if suite.endswith("-security") else "debian"]
        lines.append(f"deb [arch=amd64 signed-by={KEYRING}] {mirror} {suite} main\n")
    return "".join(lines)


def format_settings(state: Path, dump: str) -> str:
    """Return the apt.conf of a private state: the host's transport settings, and nothing else of it.

    The host's hooks would clean its own archives, and its preferences are for its own suite.
    dump: the host's `apt-config dump`.
    """
    inherited = [line for line in dump.splitlines() if INHERITED.match(line)]
    own = {
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Install-Recommends": "0",
        "Acquire::Languages": "none",
        "Acquire::ForceHash": "SHA256",
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "none",
        "Dir::Cache::srcpkgcache": "",
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
    }
    return "".join(f"{line}\n" for line in [*inherited, *(f'{key} "{value}";' for key, value in own.items())])


class Archive:
    """The packages of some suites, through an apt that shares nothing with the host's but its transport."""

    def __init__(self, cache: Cache, name: str) -> None:
        """Use `Archive.open`."""
        self._cache = cache
        self._name = name
        self._state = cache.apt / name
        self._settings = self._state / "apt.conf"

    @classmethod
    def open(cls, cache: Cache, name: str, suites: Sequence[str]) -> Archive:
        """Return it with its state written under `name`; raises VmError if Debian's keys are not there."""
        if not KEYRING.exists():
            raise VmError(
                f"Debian's packages cannot be verified: there is no {KEYRING}",
                hint="install the package debian-archive-keyring",
            )
        archive = cls(cache, name)
        state = archive._state
        for folder in (state / "lists/partial", state / "none/partial"):
            folder.mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        targets = command.run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], ok=None).stdout
        (state / "sources.list").write_text(format_sources(suites, parse_mirrors(targets)))
        dump = command.run(["apt-config", "dump"]).stdout
        archive._settings.write_text(format_settings(state, dump))
        return archive

    @property
    def updated_s(self) -> float:
        """When the indexes of these very suites were fetched, in seconds since 1970; 0 if never."""
        stamp = self._state / "updated"
        if stamp.exists() and stamp.read_text() == (self._state / "sources.list").read_text():
            return stamp.stat().st_mtime
        return 0

    def update(self) -> None:
        """Fetch the suites' indexes and verify their signatures; raises VmError with apt's own words."""
        self._apt("apt-get", "update", "-qq", "--error-on=any", timeout_s=UPDATE_TIMEOUT_S)
        shutil.copyfile(self._state / "sources.list", self._state / "updated")

    def resolve(self, words: Iterable[str]) -> list[Package]:
        """Return the named packages and all that they depend on."""
        return self._uris("install", *words)

    def named(self, *words: str) -> list[Package]:
        """Return the named packages alone."""
        return self._uris("download", *words)

    def kernel(self, word: str) -> list[Package]:
        """Return the packages of a kernel: its metapackage's, and from 7.x on it is split."""
        found: dict[str, Package] = {}
        waiting = [word]
        while waiting:
            for package in self.named(waiting.pop()):
                found[package.name] = package
                shown = self._apt("apt-cache", "show", f"{package.name}={package.version}").stdout
                depends = "".join(re.findall(r"(?m)^Depends: (.*)$", shown))
                waiting += [
                    f"{name}={version}"
                    for name, version in KERNEL_PARTS.findall(depends)
                    if name not in found
                ]
        return sorted(found.values())

    def fetch(self, packages: Iterable[Package]) -> None:
        """Download those packages that the cache does not hold; each must have the hash of the index."""
        missing = [package for package in packages if not path_of(self._cache, package).exists()]
        if not missing:
            return
        with self._cache.aside() as aside:
            aside.chmod(0o777)  # apt downloads as its own user where it is started by root
            words = [f"{package.name}={package.version}" for package in missing]
            self._apt("apt-get", "download", "-qq", *words, timeout_s=DOWNLOAD_TIMEOUT_S, cwd=aside)
            by_hash = {_sha256(file): file for file in aside.glob("*.deb")}
            for package in missing:
                if package.sha256 not in by_hash:
                    raise VmError(f"{package.name} {package.version} was not downloaded as its index says")
                by_hash[package.sha256].rename(path_of(self._cache, package))

    def _uris(self, *words: str) -> list[Package]:
        done = self._apt("apt-get", "--print-uris", "-qq", "-y", "--no-install-recommends", *words)
        packages = parse_uris(done.stdout)
        if not packages:
            raise VmError(f"apt names no packages for {' '.join(words)}")
        return packages

    def _apt(
        self, *argv: str, timeout_s: float = RESOLVE_TIMEOUT_S, cwd: Path | None = None
    ) -> command.Completed:
        env = {**network_environment(), "APT_CONFIG": os.fspath(self._settings)}
        done = command.run(bound(argv), ok=None, timeout_s=timeout_s, env=env, cwd=cwd)
        if done.returncode != 0:
            said = [line.removeprefix("E: ") for line in done.stderr.splitlines() if line.startswith("E: ")]
            told = next(iter(said), done.stderr.strip() or f"exit status {done.returncode}")
            raise VmError(f"{' '.join(argv[:2])} for {self._name} failed: {told}")
        return done


def path_of(cache: Cache, package: Package) -> Path:
    """Return where the cache keeps a package."""
    return cache.debs / f"{package.sha256}.deb"


def unpack(cache: Cache, packages: Iterable[Package], target: Path, exclude: Sequence[str] = ()) -> None:
    """Unpack packages over each other; nothing of them is executed, and all belongs to us.

    exclude: patterns of tar for what is left out. Links to merged directories are kept (`bin` is a
    link to `usr/bin`), which `dpkg-deb --extract` alone does not do.
    """
    # fmt: off
    tar = ["tar", "--extract", "--file=-", f"--directory={target}",
           "--preserve-permissions", "--no-same-owner", "--keep-directory-symlink",
           *(f"--exclude={word}" for word in exclude)]
    # fmt: on
    for package in packages:
        with (
            _contents(path_of(cache, package)) as contents,
            command.spawn(bound(tar), stdin=contents) as unpacking,
        ):
            status = unpacking.wait(UNPACK_TIMEOUT_S)
            if status != 0:
                raise command.CommandFailed(unpacking.completed(), f"{package.name} was not unpacked")


@contextlib.contextmanager
def _contents(file: Path) -> Iterator[int]:
    """Yield a descriptor that reads a package's files as a tar; raises CommandFailed if it was no package."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reading)
        try:
            process = stack.enter_context(
                command.spawn(bound(["dpkg-deb", "--fsys-tarfile", file]), stdout=writing)
            )
        finally:
            os.close(writing)
        yield reading
        if process.wait(UNPACK_TIMEOUT_S) != 0:
            raise command.CommandFailed(process.completed(), f"{file} cannot be read")


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def forget(cache: Cache) -> None:
    """Remove every downloaded package and index."""
    for folder in (cache.debs, cache.wheels, cache.apt, cache.resolved):
        remove(folder)

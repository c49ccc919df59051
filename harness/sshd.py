"""A real sshd in a host, with Debian's own configuration and PAM, and the keys that go with it.

Host commands used: `sshd`, `ssh-keygen`.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from harness import command, wait

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.host import Host

PROGRAM = "/usr/sbin/sshd"
CONFIG = Path("/etc/ssh/sshd_config")
DROP_IN = Path("/etc/ssh/sshd_config.d/10-btrsync-harness.conf")
PID_FILE = Path("/run/sshd.pid")
LOG_FILE = Path("/var/log/sshd.log")
AUTHORIZED_KEYS = Path("/root/.ssh/authorized_keys")
KNOWN_HOSTS = Path("/root/.ssh/known_hosts")
READY_S = 15.0
BITS = {"rsa": ["-b", "3072"], "ed25519": []}
SYNONYMS = {"prohibit-password": "without-password"}
"""What `sshd -T` says for a value with two names."""
LISTEN = "0A"
"""TCP_LISTEN in the fourth column of /proc/net/tcp."""

Kind = Literal["ed25519", "rsa"]


class SshdFailed(AssertionError):
    """sshd did not come up, or not with the configuration that was wanted."""


@functools.cache
def _key_pair(kind: Kind, comment: str) -> tuple[str, str]:
    """Make a key pair, once in a process: RSA takes a second. Returns (private, public) texts."""
    directory = Path(tempfile.mkdtemp(prefix="btrsync-harness-key-"))
    try:
        file = directory / "key"
        command.run(["ssh-keygen", "-q", "-t", kind, *BITS[kind], "-N", "", "-C", comment, "-f", file])
        return file.read_text(), (directory / "key.pub").read_text().strip()
    finally:
        shutil.rmtree(directory)


@dataclass(frozen=True, slots=True)
class Key:
    """A key pair without passphrase. Two of the same kind and comment are the same key."""

    kind: Kind = "ed25519"
    comment: str = "root@workstation"

    @property
    def private(self) -> str:
        """The private key file's text."""
        return _key_pair(self.kind, self.comment)[0]

    @property
    def public(self) -> str:
        """The public key: one line, without its end."""
        return _key_pair(self.kind, self.comment)[1]

    def install(self, host: Host, path: Path | str = "/root/.ssh/btrsync") -> Path:
        """Write both halves into a host, the private one 0600; return the path inside."""
        host.write_text(path, self.private, mode=0o600)
        host.write_text(f"{path}.pub", self.public + "\n")
        return Path(path)


def host_key(host_name: str, kind: Kind) -> Key:
    """Return the host key of a host of that name: the same as long as this process runs."""
    return Key(kind, f"root@{host_name} (host key)")


def authorized_line(key: Key, *, command: str | None = None, restrict: bool = True) -> str:
    """Return a line for authorized_keys, quotes in the command escaped. Source: sshd(8)."""
    options = ["restrict"] if restrict else []
    if command is not None:
        options.append('command="' + command.replace('"', '\\"') + '"')
    return " ".join([*([",".join(options)] if options else []), key.public])


def authorize(host: Host, key: Key, *, command: str | None = None, restrict: bool = True) -> None:
    """Add a key to root's authorized_keys in a host, bound to a forced command unless None."""
    line = authorized_line(key, command=command, restrict=restrict)
    host.append_text(AUTHORIZED_KEYS, line + "\n", mode=0o600)
    os.chmod(host.path(AUTHORIZED_KEYS.parent), 0o700)


def trust(client: Host, server: Host, *, port: int = 22, names: Sequence[str] = ()) -> None:
    """Write the server's host keys into the client's known_hosts, under its name and `names`."""
    wanted = [server.name, f"{server.name}.local", *names]
    if port != 22:
        wanted = [f"[{name}]:{port}" for name in wanted]
    lines = [
        f"{','.join(wanted)} {' '.join(host_key(server.name, kind).public.split()[:2])}\n"
        for kind in ("ed25519", "rsa")
    ]
    client.append_text(KNOWN_HOSTS, "".join(lines), mode=0o600)


class Sshd:
    """sshd in a host: `with Sshd(daisy) as sshd: sshd.log_text()`.

    Debian's /etc/ssh/sshd_config with a drop-in of ours (in Debian the drop-ins come first, and
    the first value counts). options: further lines for the drop-in, before our own.
    PerSourcePenalties are switched off where this sshd knows them, unless `with_penalties`.
    """

    def __init__(
        self,
        host: Host,
        *,
        permit_root_login: str = "forced-commands-only",
        port: int = 22,
        log_level: str = "VERBOSE",
        options: Sequence[str] = (),
        with_penalties: bool = False,
    ) -> None:
        """Only remember what is wanted; entering starts it."""
        self.host = host
        self.port = port
        self.wanted = {
            "permitrootlogin": SYNONYMS.get(permit_root_login, permit_root_login),
            "port": str(port),
            "loglevel": log_level,
            "usepam": "yes",
        }
        self._permit_root_login = permit_root_login
        self._log_level = log_level
        self._options = tuple(options)
        self._with_penalties = with_penalties
        self._stack = ExitStack()

    @property
    def pid(self) -> int:
        """The listener's pid inside the host."""
        return int(self.host.read_text(PID_FILE))

    def log_text(self) -> str:
        """Return what sshd has logged since the host came up."""
        path = self.host.path(LOG_FILE)
        return path.read_text(errors="replace") if path.exists() else ""

    def effective(self) -> dict[str, str]:
        """Return the configuration as `sshd -T` sees it: lower-case keywords, the last value of each."""
        lines = self.host.run([PROGRAM, "-T", "-f", CONFIG]).stdout.splitlines()
        return {word: value for word, _, value in (line.partition(" ") for line in lines)}

    def __enter__(self) -> Self:
        """Check the configuration, start sshd, wait until it listens."""
        if is_listening(self.host, self.port):
            raise SshdFailed(f"something listens at port {self.port} of {self.host.name} already")
        self._write_configuration()
        self.host.run([PROGRAM, "-t", "-f", CONFIG])
        effective = self.effective()
        if "persourcepenalties" in effective and not self._with_penalties:
            self.host.append_text(DROP_IN, "PerSourcePenalties no\n")
        overridden = {option.split()[0].lower() for option in self._options}
        wanted = {word: value for word, value in self.wanted.items() if word not in overridden}
        different = {word: effective.get(word) for word in wanted if effective.get(word) != wanted[word]}
        if different:
            raise SshdFailed(f"sshd -T on {self.host.name} says {different}, not {wanted}")
        with ExitStack() as stack:
            process = stack.enter_context(self.host.spawn([PROGRAM, "-D", "-f", CONFIG, "-E", LOG_FILE]))

            def is_ready() -> bool:
                if process.poll() is not None:
                    raise SshdFailed(f"sshd on {self.host.name} ended: {process.stderr}{self.log_text()}")
                return self.host.path(PID_FILE).exists() and is_listening(self.host, self.port)

            what = f"sshd on {self.host.name} listens at port {self.port}"
            wait.until(is_ready, timeout_s=READY_S, what=what)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the listener; sessions end with their connection, or with the host."""
        self._stack.close()
        if self.host.is_alive:
            self.host.path(PID_FILE).unlink(missing_ok=True)
            self.host.path(DROP_IN).unlink(missing_ok=True)

    def _write_configuration(self) -> None:
        kinds: tuple[Kind, ...] = ("ed25519", "rsa")
        for kind in kinds:
            host_key(self.host.name, kind).install(self.host, f"/etc/ssh/ssh_host_{kind}_key")
        lines = [
            *self._options,
            f"PermitRootLogin {self._permit_root_login}",
            f"Port {self.port}",
            f"LogLevel {self._log_level}",
            f"PidFile {PID_FILE}",
            *(f"HostKey /etc/ssh/ssh_host_{kind}_key" for kind in kinds),
        ]
        self.host.write_text(DROP_IN, "\n".join(lines) + "\n")
        # Debian's own unit makes it: RuntimeDirectory=sshd.
        self.host.path("/run/sshd").mkdir(mode=0o755, exist_ok=True)


def is_listening(host: Host, port: int) -> bool:
    """Return whether something listens on a TCP port in the host, from /proc/PID/net/tcp."""
    for name in ("tcp", "tcp6"):
        file = Path(f"/proc/{host.pid}/net/{name}")
        for line in file.read_text().splitlines()[1:] if file.exists() else ():
            fields = line.split()
            if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                return True
    return False

"""ssh as this project calls it, and what its last words mean.

The sentences of `classify` are told apart by what the clients of OpenSSH 8.4, 9.2 and 10.0 print in
the C locale, each seen on a real daemon. A host key is never accepted silently, neither a new one
nor a changed one, and no setting of the user can change that.

Host commands used: `ssh`.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import msgspec

from btrsync.errors import BtrsyncError, CommandError, Exit, RefusedError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FIXED_OPTIONS: Final = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "RequestTTY": "no",
    "RemoteCommand": "none",
    "PermitLocalCommand": "no",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "EscapeChar": "none",
}
"""First on the command line, and so before the user's: ssh keeps the first value that it meets."""

DEFAULT_OPTIONS: Final = {
    "Compression": "no",
    "ControlMaster": "no",
    "ControlPath": "none",
    "LogLevel": "INFO",
    "ServerAliveCountMax": "3",
    "ServerAliveInterval": "10",
    "UpdateHostKeys": "no",
}
"""After the user's, which win; they only keep out what ssh_config may say for interactive use."""

SSH_FAILED: Final = 255
"""What ssh ends with when it, not the remote command, has failed."""

_NO_OTHER_WAY: Final = "false"
"""A ProxyCommand that leads nowhere: without it, ssh makes a connection of its own where it may not share."""

_IDENTITY: Final = "IdentityFile="
_KNOWN_HOSTS: Final = "UserKnownHostsFile="
_PLAIN_NAME: Final = re.compile(r"[^-\s'\"`\\$(){}\[\];&<>|/@][^\s'\"`\\$(){}\[\];&<>|/@]*")
_OPTION: Final = re.compile(r"([A-Za-z0-9]+)=(\S.*)")


def ssh_argv(
    host: str,
    *,
    user: str | None = None,
    port: int = 22,
    key: Path | None = None,
    known_hosts: Path | None = None,
    options: Sequence[str] = (),
    connect_timeout_s: int = 10,
    sharing: Mapping[str, str] | None = None,
    command: Sequence[str] = (),
) -> list[str]:
    """Return the argv of an ssh that carries bytes between its stdin and stdout and asks nothing.

    options: "Key=value" each, stronger than our defaults. key: offered alone, without those of an
    agent. known_hosts: read in place of the user's own file. sharing: of `sharing_options`.
    command: words for the server's log when the key has a forced command, which alone is run there.
    Raises RefusedError for a host or user that ssh could take for something else, and for an option
    that would change what is fixed.
    """
    for what, word in (("host", host), ("user", user or "root")):
        if not _PLAIN_NAME.fullmatch(word):
            raise RefusedError(f"{what} {word!r} is refused: it is no plain {what} name")
    return [
        "ssh", "-T",
        *_words(FIXED_OPTIONS),
        *_words(sharing or {}),
        *(word for option in options for word in ("-o", _allowed(option))),
        *_words(DEFAULT_OPTIONS),
        "-o", f"ConnectTimeout={connect_timeout_s}",
        *(["-o", f"{_KNOWN_HOSTS}{_quoted(known_hosts)}"] if known_hosts else []),
        # Not -i: where the file is missing, ssh would offer its usual keys instead.
        *(["-o", "IdentitiesOnly=yes", "-o", f"{_IDENTITY}{_quoted(key)}"] if key else []),
        *(["-l", user] if user else []),
        "-p", str(port),
        "--", host, *command,
    ]  # fmt: skip


def sharing_options(socket: Path, *, is_first: bool) -> dict[str, str]:
    """Return what lets several ssh share one TCP connection: the first makes it, and the others use it.

    socket: a path of less than 87 bytes that is not there, in a directory of our own. When the first one
    ends, all do. Source: ssh_config(5), ControlMaster; mux.c, which adds 17 bytes to the path, of 104.
    """
    path = {"ControlPath": _quoted(socket), "ControlPersist": "no"}
    if is_first:
        return {**path, "ControlMaster": "yes"}
    return {**path, "ControlMaster": "no", "ProxyCommand": _NO_OTHER_WAY}


def classify(exit: Exit) -> BtrsyncError:
    """Return what the end of an ssh made by `ssh_argv` means: one sentence, a hint, its last line.

    Only an UnreachableError that may pass by itself is retryable. A status that is not of ssh's or
    the remote shell's making belongs to the remote command: CommandError, which does not show our argv.
    """
    if exit.returncode in {126, 127}:
        return _permanent(_no_command(exit))
    at = _Destination.of(exit.argv)
    if exit.returncode < 0:
        return UnreachableError(f"{at.host}: ssh was killed by signal {-exit.returncode}")
    if exit.returncode != SSH_FAILED:
        # Not our argv: what ended so is the other end's.
        return CommandError(
            Exit(exit.argv, exit.returncode, exit.stderr, f"the forced command on {at.host}"),
            hint="it must be `btrsync serve CLIENT`; its log on the server tells more",
        )
    for meaning in MEANINGS:
        if re.search(meaning.pattern, exit.stderr, re.MULTILINE):
            error = UnreachableError(
                f"{at.host}: {meaning.sentence}{_evidence(exit, meaning.pattern)}",
                hint=meaning.hint.format(at=at) or None,
            )
            return error if meaning.may_pass else _permanent(error)
    return UnreachableError(
        f"{at.host}: the connection was lost{_evidence(exit)}",
        hint="look at the link, and at the server's log for what it says of sshd",
    )


class Meaning(msgspec.Struct, frozen=True):
    """What a pattern on ssh's stderr means; `hint` is formatted with the destination as `at`."""

    pattern: str
    sentence: str
    hint: str
    may_pass: bool = True


MEANINGS: Final = (
    Meaning(
        r"Session open refused by peer",
        "the server opens no further session over one connection",
        "on the server raise MaxSessions in sshd_config, or set `parallel` to what it allows",
        may_pass=False,
    ),
    Meaning(
        r"Could not resolve hostname",
        "the name does not resolve",
        "correct `host` in the configuration, or add the name to DNS or /etc/hosts",
    ),
    Meaning(
        r"connect to host .*Connection refused",
        "the connection was refused: nothing listens on that port",
        "on the server see that sshd runs, and on which port: ss -ltnp",
    ),
    Meaning(
        r"No route to host|Network is unreachable",
        "there is no route to it",
        "see that the host is up and the network between: ip route get {at.host}",
    ),
    Meaning(
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key has changed; it is never accepted silently",
        "on the server compare its fingerprint: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub; if it is"
        " right, forget the old key with: ssh-keygen -R {at.known_name}{at.known_hosts_words}, then add the"
        " new one",
        may_pass=False,
    ),
    Meaning(
        r"No \S+ host key is known for|[Hh]ost key verification failed",
        "its host key is not known; it is never accepted silently",
        "get it with: ssh-keyscan -p {at.port} {at.host}, compare the fingerprint on the server, then add it"
        " to {at.known_hosts}",
        may_pass=False,
    ),
    Meaning(
        r"no such identity: |Identity file \S+ not accessible",
        "the key is missing",
        "make it with: ssh-keygen -t ed25519 -N '' -f {at.key}; add its .pub to the server's authorized_keys",
        may_pass=False,
    ),
    Meaning(
        r"UNPROTECTED PRIVATE KEY FILE|bad permissions",
        "ssh refuses to use a key that others can read",
        "chmod 600 {at.key}",
        may_pass=False,
    ),
    Meaning(
        r"Load key .*(invalid format|error in libcrypto|incorrect passphrase|passphrase)",
        "the key cannot be read",
        "a key for unattended use has no passphrase: ssh-keygen -y -f {at.key} must print it without asking",
        may_pass=False,
    ),
    Meaning(
        r"Permission denied \(|Too many authentication failures",
        "the server does not accept the key",
        'offered was {at.key}; see that its .pub stands in the server\'s authorized_keys with command="…"'
        " before it (PermitRootLogin forced-commands-only lets in no other), and read the server's sshd log",
        may_pass=False,
    ),
    Meaning(
        r"Unable to negotiate",
        "the two ends of ssh have no common algorithm",
        "the line tells which; allow one by `ssh_options` in the configuration, or upgrade the older end",
        may_pass=False,
    ),
    Meaning(
        r"Bad configuration option|[Uu]nsupported option|command-line(:| line)",
        "ssh does not understand an option",
        "correct `ssh_options` in the configuration",
        may_pass=False,
    ),
    Meaning(
        r"Not allowed at this time|Exceeded MaxStartups",
        "the server turns new connections away for now",
        "after failed logins it does so for a while (PerSourcePenalties), or too many knock at once"
        " (MaxStartups)",
    ),
    Meaning(
        r"Timeout, server \S+ not responding",
        "the connection went silent and was given up",
        "look at the link; ServerAliveInterval times ServerAliveCountMax is how long it may be silent",
    ),
    Meaning(
        r"timed out",
        "it does not answer",
        "see that the host is up, and that no firewall drops port {at.port}",
    ),
    Meaning(
        r"kex_exchange_identification|banner exchange|banner line",
        "the server hung up before ssh began",
        "read the server's sshd log: hosts.deny, a missing /run/sshd or a half upgraded sshd do this",
    ),
    Meaning(
        r"^Connection closed by|^Connection reset by",
        "the server hung up while logging in",
        'read the server\'s sshd log: ROOT LOGIN REFUSED there means that the key has no command="…" in'
        " authorized_keys while PermitRootLogin is forced-commands-only",
    ),
)
"""In the order of asking: a specific word first, since ssh often says a general one after it."""


class _Destination(msgspec.Struct, frozen=True):
    """What an argv of ours says of where it leads, for hints."""

    host: str
    port: str
    key: str
    known_hosts: str

    @classmethod
    def of(cls, argv: Sequence[str]) -> _Destination:
        end = argv.index("--") if "--" in argv[:-1] else 0
        words = argv[:end]
        return cls(
            host=argv[end + 1] if end else "the server",
            port=words[words.index("-p") + 1] if "-p" in words else "22",
            key=_path_in(words, _IDENTITY) or "/root/.ssh/id_ed25519",
            known_hosts=_path_in(words, _KNOWN_HOSTS) or "/root/.ssh/known_hosts",
        )

    @property
    def known_name(self) -> str:
        """The name under which known_hosts keeps the key."""
        return self.host if self.port == "22" else f"'[{self.host}]:{self.port}'"

    @property
    def known_hosts_words(self) -> str:
        return f" -f {self.known_hosts}"


def _no_command(exit: Exit) -> UnreachableError:
    at = _Destination.of(exit.argv)
    what = "has no btrsync where the forced command looks for it"
    if exit.returncode == 126:
        what = "cannot execute what the forced command names"
    return UnreachableError(
        f"{at.host}: the server {what}{_evidence(exit)}",
        hint='install btrsync there, and write its absolute path into command="…" of authorized_keys',
    )


def _permanent(error: UnreachableError) -> UnreachableError:
    error.retryable = False
    return error


def _evidence(exit: Exit, pattern: str | None = None) -> str:
    """Return the line that decided, or the last one, as the tail of a sentence."""
    lines = [line.strip() for line in exit.stderr.splitlines() if line.strip(" \t\r@")]
    deciding = [line for line in lines if pattern is not None and re.search(pattern, line)]
    chosen = (deciding or lines)[-1:]
    return f" ({chosen[0][:300]})" if chosen else ""


def _words(options: Mapping[str, str]) -> list[str]:
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def _allowed(option: str) -> str:
    found = _OPTION.fullmatch(option)
    if found is None:
        raise RefusedError(f"ssh option {option!r} is refused: it is not of the form Key=value")
    fixed = {name.lower(): f"{name}={value}" for name, value in FIXED_OPTIONS.items()}
    if found[1].lower() in fixed:
        raise RefusedError(
            f"ssh option {option!r} is refused: {fixed[found[1].lower()]} is fixed",
            hint="leave it out of ssh_options",
        )
    return option


def _quoted(path: Path) -> str:
    """Return a path as one word of an ssh option: it would end at a space, and expand at a %."""
    return '"' + os.fspath(path).replace("%", "%%") + '"'


def _path_in(words: Sequence[str], option: str) -> str | None:
    """Return the path that `_quoted` made, of the first word that sets an option."""
    for word in words:
        if word.startswith(option):
            return word.removeprefix(option).strip('"').replace("%%", "%")
    return None

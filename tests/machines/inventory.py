"""Which machines are looked at, and what their own files say of each other.

A *target* here is where the machines are: a rehearsal (hosts made for the purpose), virtual machines,
or the real ones in production. What to expect is read from the machines' own configuration as far as
it says so; the rest is the set-up of the original.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import testinfra

from tests.machines import backend

if TYPE_CHECKING:
    from harness.scenario import TwoHosts

TARGETS = ("rehearsal", "vm", "production")
CLIENT_FILE = "/etc/btrsync/btrsync.toml"
SERVER_FILE = "/etc/btrsync/server.toml"
AUTHORIZED_KEYS = "/root/.ssh/authorized_keys"
KNOWN_HOSTS = "/root/.ssh/known_hosts"
KEY_TYPES = ("ssh-", "ecdsa-", "sk-")


class UsageProblem(ValueError):
    """The command line does not say which machines are meant."""


def problem(target: str, server: str | None, workstation: str | None) -> str | None:
    """Return what is missing on the command line for a target, or None."""
    if target == "rehearsal":
        if server or workstation:
            return "--server and --workstation belong to --target vm or --target production"
        return None
    missing = [word for word, value in (("--server", server), ("--workstation", workstation)) if not value]
    if not missing:
        return None
    return (
        f"--target {target} looks at machines that exist: name them with {' and '.join(missing)} "
        "(a host name for ssh as root, or a testinfra spec such as ssh://root@daisy.local or local://)"
    )


def parse_spec(word: str) -> tuple[str, str]:
    """Return the testinfra spec and the host's name for a word of the command line."""
    spec = word if "://" in word else f"ssh://{word}"
    name = spec.partition("://")[2].partition("?")[0].rpartition("@")[2].partition(":")[0]
    if spec.startswith("ssh://") and "controlpersist=" not in spec:
        # Otherwise ssh's masters stay behind when the tests have ended.
        spec += f"{'&' if '?' in spec else '?'}controlpersist=0"
    return spec, name


@dataclass(frozen=True, slots=True)
class AuthorizedKey:
    """One line of authorized_keys. options: as they stand there, in order, without `command`."""

    kind: str
    blob: str
    options: tuple[str, ...] = ()
    command: str | None = None


def parse_authorized_keys(text: str) -> list[AuthorizedKey]:
    """Return the keys of an authorized_keys file. Source: sshd(8), AUTHORIZED_KEYS FILE FORMAT."""
    lines = (line.strip() for line in text.splitlines())
    return [_parse_key(line) for line in lines if line and not line.startswith("#")]


def _parse_key(line: str) -> AuthorizedKey:
    options, rest = ((), line) if line.startswith(KEY_TYPES) else _split_options(line)
    kind, _, blob = rest.strip().partition(" ")
    commands = [word[len("command=") :] for word in options if word.lower().startswith("command=")]
    return AuthorizedKey(
        kind,
        blob.strip().partition(" ")[0],
        tuple(word for word in options if not word.lower().startswith("command=")),
        commands[0].removeprefix('"').removesuffix('"').replace('\\"', '"') if commands else None,
    )


def _split_options(line: str) -> tuple[tuple[str, ...], str]:
    """Return the options of a line and what follows them; a quote inside quotes is written as \\"."""
    words = [""]
    is_quoted = False
    for place, character in enumerate(line):
        if character == '"' and line[place - 1 : place] != "\\":
            is_quoted = not is_quoted
        if character in " \t" and not is_quoted:
            return tuple(words), line[place:]
        if character == "," and not is_quoted:
            words.append("")
        else:
            words[-1] += character
    return tuple(words), ""


@dataclass(frozen=True, slots=True)
class Machines:
    """A workstation and its server, as testinfra sees them. btrsync: how the command is called there."""

    target: str
    workstation: Any
    server: Any
    server_name: str
    btrsync: str = "btrsync"

    @classmethod
    def of_rehearsal(cls, both: TwoHosts) -> Machines:
        """Return the two hosts of a rehearsal."""
        backend.register()
        workstation, server = (
            testinfra.get_host(f"{backend.NAME}://{host.pid}") for host in (both.workstation, both.daisy)
        )
        return cls("rehearsal", workstation, server, both.daisy.name, str(both.btrsync_path))

    @classmethod
    def of_command_line(cls, target: str, server: str, workstation: str) -> Machines:
        """Return the machines that were named; nothing is contacted yet."""
        spec, name = parse_spec(server)
        return cls(target, testinfra.get_host(parse_spec(workstation)[0]), testinfra.get_host(spec), name)

    def client_configuration(self) -> dict[str, Any]:
        """Return what the workstation's configuration says."""
        return tomllib.loads(self.workstation.file(CLIENT_FILE).content_string)

    def target_of_server(self) -> dict[str, Any]:
        """Return the workstation's table for the server. Raises LookupError if it has none."""
        label = self.server_name.partition(".")[0]
        tables: dict[str, dict[str, Any]] = self.client_configuration()["targets"]
        for table in tables.values():
            if str(table.get("host", "")).partition(".")[0] == label:
                return {"port": 22, "key": "/root/.ssh/btrsync", "known_hosts": KNOWN_HOSTS, **table}
        raise LookupError(f"no target in {CLIENT_FILE} has the host {self.server_name}")

    def server_root(self) -> str:
        """Return the directory with all clients' backups."""
        return str(tomllib.loads(self.server.file(SERVER_FILE).content_string)["root"])

    def array_mount(self) -> dict[str, Any]:
        """Return the mount that holds the backups: target, source, fstype, options (a list)."""
        said = self.server.check_output(
            "findmnt --json --output TARGET,SOURCE,FSTYPE,OPTIONS --target %s", self.server_root()
        )
        # The last one is on top, where several are mounted at one place.
        mount: dict[str, Any] = json.loads(said)["filesystems"][-1]
        return {**mount, "options": mount["options"].split(",")}

    def forced_commands(self) -> list[AuthorizedKey]:
        """Return the keys of the server's root that are bound to `btrsync serve`."""
        keys = parse_authorized_keys(self.server.file(AUTHORIZED_KEYS).content_string)
        return [key for key in keys if key.command and "serve" in shlex.split(key.command)]

    def public_key(self) -> str:
        """Return the public half of the workstation's key, computed from the private one, without comment."""
        said: str = self.workstation.check_output("ssh-keygen -y -P '' -f %s", self.target_of_server()["key"])
        return " ".join(said.split()[:2])

    def effective_sshd(self) -> dict[str, str]:
        """Return the configuration by which the server's sshd would judge root's login from the workstation.

        Source: sshd(8), -T and -C: with a connection given, `Match` blocks count.
        """
        target = self.target_of_server()
        resolved = self.workstation.check_output("getent ahosts %s", target["host"])
        laddr = resolved.split()[0]
        route = self.workstation.check_output("ip -oneline route get %s", laddr).split()
        addr = route[route.index("src") + 1] if "src" in route else laddr
        name = self.workstation.check_output("hostname")
        connection = f"user=root,host={name},addr={addr},laddr={laddr},lport={target['port']}"
        lines = self.server.check_output("/usr/sbin/sshd -T -C %s", connection).splitlines()
        return {word: value for word, _, value in (line.partition(" ") for line in lines)}

"""What a test needs of the machine, each found out by doing it, once in a session."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness import command, containment, dmcrypt, kernel_log
from harness.filesystem import Array, mount
from harness.host import Host, HostFailed
from harness.loop import LoopDevice

if TYPE_CHECKING:
    from collections.abc import Callable

    Probe = Callable[[], None]

PROGRAM = "program:"
SMALL_BYTES = 128 << 20
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01


class Missing(Exception):
    """Something is not here; the text says what was tried and what came of it."""


def _root() -> None:
    if os.geteuid() != 0:
        raise Missing("not root")
    command.run(["unshare", "--mount", "--propagation", "unchanged", "true"])


def _loop() -> None:
    with LoopDevice(1 << 20):
        pass


def _btrfs() -> None:
    with Host("probe") as host, Array(1, SMALL_BYTES) as array, mount(array, "/mnt", host=host):
        pass


def _host() -> None:
    with Host("probe"):
        pass


def _netlink(*requests: tuple[str, str]) -> None:
    """Try a veth pair and then queueing disciplines on it, in the network namespace of a host."""
    from pyroute2 import IPRoute, NetlinkError

    with Host("probe") as host, IPRoute(netns=str(host.netns_path), flags=0) as route:
        try:
            route.link("add", ifname="probe0", kind="veth", peer={"ifname": "probe1"})
        except NetlinkError as error:
            raise Missing(f"no veth: {error}") from None
        index = route.link_lookup(ifname="probe0")[0]
        for kind, argument in requests:
            shape = {"rate": "8mbit", "burst": 32768, "latency": "50ms"} if kind == "tbf" else {"delay": 1000}
            try:
                route.tc("add", kind, index=index, handle="1:", **shape)
            except NetlinkError as error:
                raise Missing(f"no queueing discipline {kind} ({argument}): {error}") from None


def _nftables() -> None:
    table = (
        "table inet probe {\n chain in { type filter hook input priority 0;\n"
        '  iifname "x" drop; iifname "y" meta l4proto tcp reject with tcp reset; }\n}\n'
    )
    with Host("probe") as host:
        host.run(["nft", "-f", "-"], input=table)


def _sshd() -> None:
    with Host("probe") as host:
        host.write_text("/run/sshd/.keep", "")
        host.run(["ssh-keygen", "-q", "-A"])
        host.run(["/usr/sbin/sshd", "-t"])


def _dm_crypt() -> None:
    with tempfile.TemporaryDirectory() as directory, LoopDevice(1 << 20) as loop:
        key = dmcrypt.write_key(Path(directory) / "key")
        with dmcrypt.Mapping(loop.device, f"btrsync-probe-{os.getpid()}", key):
            pass


def _kvm() -> None:
    """Only that the device works: whether a kernel boots on it, `vmimages` finds out by booting."""
    fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, KVM_GET_API_VERSION)
        os.close(fcntl.ioctl(fd, KVM_CREATE_VM))
    finally:
        os.close(fd)


def _kernel_log() -> None:
    problem = kernel_log.problem()
    if problem:
        raise Missing(problem)


def _containment() -> None:
    problem = containment.problem()
    if problem:
        raise Missing(problem)


REQUIREMENTS: dict[str, Probe] = {
    "root": _root,
    "loop": _loop,
    "btrfs": _btrfs,
    "host": _host,
    "overlay": _host,
    "netns": _host,
    "veth": functools.partial(_netlink),
    "tbf": functools.partial(_netlink, ("tbf", "sch_tbf")),
    "netem": functools.partial(_netlink, ("netem", "sch_netem")),
    "nftables": _nftables,
    "sshd": _sshd,
    "dm_crypt": _dm_crypt,
    "kvm": _kvm,
    "kernel_log": _kernel_log,
    "containment": _containment,
}
"""Every name that `requires` takes, besides "program:NAME"."""


@functools.cache
def reason(name: str) -> str | None:
    """Return why `name` is not to be had here, or None if it is: tried once, then remembered."""
    if name.startswith(PROGRAM):
        program = name.removeprefix(PROGRAM)
        return None if shutil.which(program) else f"no {program} on PATH"
    if name not in REQUIREMENTS:
        names = ", ".join(REQUIREMENTS)
        raise LookupError(f"requires: no such name: {name}; there are {names}, {PROGRAM}NAME")
    if name != "root" and (why := reason("root")):
        return why
    try:
        REQUIREMENTS[name]()
    except command.CommandFailed as failed:
        lines = failed.completed.stderr.strip().splitlines()
        return f"{failed.completed.argv[0]}: {lines[-1] if lines else failed.problem}"
    except (Missing, HostFailed, OSError) as error:
        return str(error)
    return None


def missing(*names: str) -> list[str]:
    """Return what is missing of `names`, each with its reason; empty if all is there."""
    found = []
    for name in names:
        why = reason(name)
        if why is not None:
            found.append(f"{name} ({why})")
    return found


def forget() -> None:
    """Forget every verdict, for tests of the probes themselves."""
    with contextlib.suppress(AttributeError):
        reason.cache_clear()

"""A veth link between two hosts, by pyroute2, and what can happen to a link.

Host commands used: `nft` (inside a host).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Self

from harness import wait

if TYPE_CHECKING:
    from pathlib import Path

    from harness.host import Host

PREFIX_LENGTH = 24
CARRIER_S = 5.0
TABLE = "btrsync_fault"
BURST_BYTES = 32 * 1024
LATENCY = "50ms"
NO_QDISC = (2, 22)
"""What deleting a queue that is not there gives: ENOENT or EINVAL."""


class Link:
    """A cable between two hosts: `with Link(workstation, daisy) as link: link.cut()`.

    addresses: one IPv4 address for each, in one /24. Both hosts then know each other by name in
    /etc/hosts, and by `NAME.local`. The namespaces are held open, so that a killed host's end of
    the cable stays and the other one sees silence if the link was cut before.
    Use it from one thread; not inside a running asyncio loop.
    """

    def __init__(
        self,
        a: Host,
        b: Host,
        addresses: tuple[str, str] = ("10.77.0.1", "10.77.0.2"),
        *,
        interface: str = "eth0",
    ) -> None:
        """Only remember what is wanted; entering makes it."""
        self.hosts = (a, b)
        self.addresses = addresses
        self.interface = interface
        self._routes: tuple[Any, ...] = ()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Make the link, set both ends up and wait for the carrier."""
        with contextlib.ExitStack() as stack:
            self._routes = tuple(stack.enter_context(_open(host.netns_path)) for host in self.hosts)
            near = self._routes[0]
            fd = os.open(self.hosts[1].netns_path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                peer = {"ifname": self.interface, "net_ns_fd": fd}
                near.link("add", ifname=self.interface, kind="veth", peer=peer)
            finally:
                os.close(fd)
            stack.callback(self._delete)
            for route, address in zip(self._routes, self.addresses, strict=True):
                index = self._index(route)
                route.addr("add", index=index, address=address, prefixlen=PREFIX_LENGTH)
                route.link("set", index=index, state="up")
            self._wait_for_carrier(1)
            self._name_each_other()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the link; a fault that is still on goes with it."""
        try:
            self.clear()
        finally:
            self._stack.close()

    def _delete(self) -> None:
        for route in self._routes:
            indexes = route.link_lookup(ifname=self.interface)
            if indexes:
                route.link("del", index=indexes[0])

    def _name_each_other(self) -> None:
        for here in self.hosts:
            lines = [
                f"{address}\t{host.name} {host.name}.local\n"
                for host, address in zip(self.hosts, self.addresses, strict=True)
            ]
            here.append_text("/etc/hosts", "".join(lines))

    def _index(self, route: Any) -> int:  # noqa: ANN401 - pyroute2 has no types
        indexes = route.link_lookup(ifname=self.interface)
        if not indexes:
            names = " and ".join(host.name for host in self.hosts)
            raise RuntimeError(f"no link {self.interface} between {names}: is one of them gone?")
        return int(indexes[0])

    def carrier(self, end: int = 0) -> int:
        """Return 1 if that end (0 or 1) sees the other, else 0.

        Not the operational state, which still says UP after the peer went down (measured).
        """
        route = self._routes[end]
        link = route.get_links(self._index(route))[0]
        return int(link.get_attr("IFLA_CARRIER") or 0)

    def _wait_for_carrier(self, wanted: int) -> None:
        for end in (0, 1):
            wait.until(
                lambda end=end: self.carrier(end) == wanted,  # type: ignore[misc]
                timeout_s=CARRIER_S,
                what=f"carrier {wanted} at {self.hosts[end].name}",
            )

    def cut(self) -> None:
        """Set the far end down: both sides see silence from now on, no reset."""
        self._set_state("down")
        self._wait_for_carrier(0)

    def restore(self) -> None:
        """Undo `cut`; connections that have not timed out go on."""
        self._set_state("up")
        self._wait_for_carrier(1)

    def _set_state(self, state: str) -> None:
        route = self._routes[1]
        route.link("set", index=self._index(route), state=state)

    def slow(self, rate_bits: int = 8_000_000) -> None:
        """Limit both directions to `rate_bits` per second, at once, also when slowed before.

        About 97 % of the rate is payload (measured).
        """
        burst_bytes = max(BURST_BYTES, rate_bits // 8 // 100)
        for route in self._routes:
            index = self._index(route)
            shape = {"rate": f"{rate_bits}bit", "burst": burst_bytes, "latency": LATENCY}
            route.tc("replace", "tbf", index=index, handle="1:", **shape)

    def delay(self, delay_ms: int = 20, loss_percent: float = 0) -> None:
        """Delay and lose packets in both directions; needs netem in the kernel."""
        for route in self._routes:
            index = self._index(route)
            route.tc("replace", "netem", index=index, handle="1:", delay=delay_ms * 1000, loss=loss_percent)

    def normal(self) -> None:
        """Undo `slow` and `delay`; nothing if there was none."""
        from pyroute2 import NetlinkError

        for route in self._routes:
            try:
                # Without `root` the kernel refuses.
                route.tc("del", index=self._index(route), root=True)
            except NetlinkError as error:
                if error.code not in NO_QDISC:
                    raise

    def drop(self) -> None:
        """Lose every packet at the far host without a word (nftables); the link stays up."""
        self._nft(f'iifname "{self.interface}" drop', f'oifname "{self.interface}" drop')

    def reset(self) -> None:
        """Answer every TCP packet at the far host with a reset; an idle connection notices nothing."""
        self._nft(
            f'iifname "{self.interface}" meta l4proto tcp reject with tcp reset',
            # Not our own resets, which leave by the same way.
            f'oifname "{self.interface}" tcp flags & rst == 0 reject with tcp reset',
        )

    def _nft(self, incoming: str, outgoing: str) -> None:
        self.clear()
        table = (
            f"table inet {TABLE} {{\n"
            f"  chain incoming {{ type filter hook input priority 0; {incoming}; }}\n"
            f"  chain outgoing {{ type filter hook output priority 0; {outgoing}; }}\n"
            "}\n"
        )
        self.hosts[1].run(["nft", "-f", "-"], input=table)
        self._has_table = True

    _has_table = False

    def clear(self) -> None:
        """Undo `drop` and `reset`; nothing if there was none."""
        if self._has_table and self.hosts[1].is_alive:
            self.hosts[1].run(["nft", "delete", "table", "inet", TABLE])
        self._has_table = False


def _open(path: Path) -> Any:  # noqa: ANN401 - pyroute2 has no types
    # flags=0: otherwise a path that is not there makes a new namespace without a word. Looked at
    # first, for a failed IPRoute leaves its sockets open (measured, pyroute2 0.9.6).
    os.stat(path)
    # Imported here: it takes a seventh of a second, which sessions without a link save.
    from pyroute2 import IPRoute

    return IPRoute(netns=str(path), flags=0)

"""Links between hosts, and each fault of a link seen to strike."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from harness import faults, sshd, wait
from harness.host import Host
from harness.netns import Link

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness.command import Process

pytestmark = pytest.mark.requires("host", "veth")

SERVER = """
import socket, sys, threading
def serve(connection):
    with connection:
        total = 0
        while block := connection.recv(1 << 20):
            total += len(block)
            if len(block) == 1:
                connection.sendall(b"+")
        print("closed after", total, flush=True)
listener = socket.create_server(("", 7777))
print("listening", flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
CLIENT = """
import socket, sys, time
connection = socket.create_connection(("daisy", 7777), timeout=float(sys.argv[2]))
size, sent, started = int(sys.argv[1]), 0, time.monotonic()
print("connected", flush=True)
for line in sys.stdin:
    connection.sendall(b"x" * size)
    while connection.recv(65536).find(b"+") < 0:
        pass
    print("answered", flush=True)
"""
BULK = """
import socket, sys, time
size = int(sys.argv[1])
connection = socket.create_connection(("daisy", 7777))
started = time.monotonic()
connection.sendall(b"x" * size)
connection.shutdown(socket.SHUT_WR)
while connection.recv(65536):
    pass
print(size / (time.monotonic() - started))
"""


@contextlib.contextmanager
def echo_server(daisy: Host) -> Iterator[Process]:
    with daisy.spawn([sys.executable, "-c", SERVER]) as server:
        wait.until(lambda: "listening" in server.stdout, timeout_s=10, what="the server")
        yield server


class Talker:
    """A client that sends one byte whenever it is told to."""

    def __init__(self, process: Process, fd: int) -> None:
        self.process = process
        self._fd = fd

    def say(self) -> None:
        os.write(self._fd, b"go\n")

    def answers(self) -> int:
        return self.process.stdout.count("answered")


@contextlib.contextmanager
def talker(workstation: Host, *, timeout_s: float = 60) -> Iterator[Talker]:
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        argv = [sys.executable, "-c", CLIENT, "1", str(timeout_s)]
        with workstation.spawn(argv, stdin=read_end) as process:
            wait.until(lambda: "connected" in process.stdout, timeout_s=10, what="the connection")
            yield Talker(process, write_end)
    finally:
        os.close(read_end)
        os.close(write_end)


def bytes_per_s(workstation: Host, size_bytes: int) -> float:
    return float(workstation.run([sys.executable, "-c", BULK, str(size_bytes)]).stdout)


def test_two_hosts_know_each_other_by_name(workstation: Host, daisy: Host, link: Link) -> None:
    assert link.addresses == ("10.77.0.1", "10.77.0.2")
    for here, name, address in (
        (workstation, "daisy", "10.77.0.2"),
        (daisy, "workstation.local", "10.77.0.1"),
    ):
        assert here.run(["getent", "ahostsv4", name]).stdout.split()[0] == address


def test_a_third_host_hears_nothing(link: Link) -> None:
    with Host("stranger") as stranger:
        assert os.listdir(stranger.root / "sys/class/net") == ["lo"]
        assert link.carrier() == 1


def test_a_link_is_gone_on_leaving(workstation: Host, daisy: Host) -> None:
    with Link(workstation, daisy):
        assert sorted(os.listdir(daisy.root / "sys/class/net")) == ["eth0", "lo"]
    assert os.listdir(daisy.root / "sys/class/net") == ["lo"]
    with Link(workstation, daisy) as again:
        assert again.carrier(1) == 1


def test_a_cut_link_is_silent_and_a_restored_one_goes_on(workstation: Host, daisy: Host, link: Link) -> None:
    with echo_server(daisy) as server, talker(workstation) as client:
        client.say()
        wait.until(lambda: client.answers() == 1, timeout_s=5, what="an answer")
        with faults.CutLink(link):
            assert (link.carrier(0), link.carrier(1)) == (0, 0)
            client.say()
            with pytest.raises(wait.NeverCame):
                wait.until(lambda: client.answers() == 2, timeout_s=0.5, what="an answer through a cut link")
            assert "closed" not in server.stdout, "silence is no end of file"
        wait.until(lambda: client.answers() == 2, timeout_s=20, what="the answer after the link is restored")
        assert (link.carrier(0), link.carrier(1)) == (1, 1)


@pytest.mark.requires("tbf")
def test_a_slow_link_is_slow_and_then_no_more(workstation: Host, daisy: Host, link: Link) -> None:
    with echo_server(daisy):
        before = bytes_per_s(workstation, 20_000_000)
        with faults.SlowLink(link, 8_000_000):
            slow = bytes_per_s(workstation, 700_000)
            link.slow(80_000_000)
            faster = bytes_per_s(workstation, 7_000_000)
        after = bytes_per_s(workstation, 20_000_000)
    assert slow < 1_300_000, f"8 Mbit/s gave {slow:.0f} bytes/s"
    assert faster > 2 * slow, f"changed live: {faster:.0f} after {slow:.0f}"
    assert min(before, after) > 10 * slow, f"{before:.0f} before, {slow:.0f} slow, {after:.0f} after"


@pytest.mark.requires("tbf")
def test_a_link_is_made_normal_twice_without_complaint(link: Link) -> None:
    link.slow()
    link.normal()
    link.normal()


@pytest.mark.vm
@pytest.mark.requires("netem")
def test_a_delayed_link_takes_its_time(workstation: Host, daisy: Host, link: Link) -> None:
    with echo_server(daisy), talker(workstation) as client:
        link.delay(150)
        started = time.monotonic()
        client.say()
        wait.until(lambda: client.answers() == 1, timeout_s=10, what="an answer")
        assert time.monotonic() - started > 0.3


@pytest.mark.requires("nftables")
def test_a_silent_link_drops_while_the_carrier_is_there(workstation: Host, daisy: Host, link: Link) -> None:
    with echo_server(daisy) as server, talker(workstation) as client:
        with faults.SilentLink(link):
            assert link.carrier() == 1
            client.say()
            with pytest.raises(wait.NeverCame):
                wait.until(lambda: client.answers() == 1, timeout_s=0.5, what="an answer through a drop")
            assert "closed" not in server.stdout
        wait.until(lambda: client.answers() == 1, timeout_s=20, what="the answer after the drop")


@pytest.mark.requires("nftables")
def test_a_resetting_link_ends_the_connection(workstation: Host, daisy: Host, link: Link) -> None:
    with echo_server(daisy), talker(workstation) as client:
        with faults.ResettingLink(link):
            client.say()
            assert client.process.wait(5) == 1
            assert "ConnectionResetError" in client.process.stderr
        with talker(workstation) as again:
            again.say()
            wait.until(lambda: again.answers() == 1, timeout_s=5, what="an answer after the reset")


def test_a_killed_host_is_an_end_of_file_to_its_peer(workstation: Host, daisy: Host, link: Link) -> None:
    with echo_server(daisy) as server, talker(workstation) as client:
        client.say()
        wait.until(lambda: client.answers() == 1, timeout_s=5, what="an answer")
        faults.kill_host(workstation)
        wait.until(lambda: "closed after 1" in server.stdout, timeout_s=5, what="the end of file")
        assert link.hosts[1].is_alive


def test_a_vanished_host_is_silence_to_its_peer(workstation: Host, daisy: Host, link: Link) -> None:
    with echo_server(daisy) as server, talker(workstation) as client:
        client.say()
        wait.until(lambda: client.answers() == 1, timeout_s=5, what="an answer")
        faults.vanish(workstation, link)
        with pytest.raises(wait.NeverCame):
            wait.until(lambda: "closed" in server.stdout, timeout_s=0.7, what="an end of file")
        assert sorted(os.listdir(daisy.root / "sys/class/net")) == ["eth0", "lo"]


def test_a_namespace_that_is_not_there_is_not_made(workstation: Host, daisy: Host) -> None:
    daisy.kill()
    with pytest.raises(OSError, match=r"No such file|No such process"):
        Link(workstation, daisy).__enter__()
    assert not os.path.exists(f"/run/netns/{daisy.name}")


@pytest.mark.requires("sshd")
def test_a_listening_port_is_seen(daisy: Host, link: Link) -> None:
    with echo_server(daisy):
        assert sshd.is_listening(daisy, 7777)
        assert not sshd.is_listening(daisy, 7778)
    assert link.carrier() == 1

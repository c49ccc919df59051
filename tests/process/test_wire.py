"""Two wires back to back over pipes: greeting, frames, silence, lost peers, spliced streams."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

import pytest

from btrsync import protocol
from btrsync.errors import ProtocolError, UnreachableError
from btrsync.protocol import FRAME_HEADER, Bye, FrameType, Hello, Progress, Versions, Waiting, format_banner
from btrsync.wire import ClosedError, Data, NoBannerError, StopAskedError, Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

OURS = Versions(1, 1)


class Ends:
    """A wire and the raw descriptors of its peer."""

    def __init__(self, wire: Wire, peer_read_fd: int, peer_write_fd: int) -> None:
        self.wire = wire
        self.peer_read_fd = peer_read_fd
        self.peer_write_fd = peer_write_fd

    def say(self, block: bytes) -> int:
        return os.write(self.peer_write_fd, block)

    def heard(self, size_bytes: int) -> bytes:
        block = b""
        while len(block) < size_bytes:
            block += os.read(self.peer_read_fd, size_bytes - len(block))
        return block


@contextlib.contextmanager
def wired(*, silence_s: float = 5.0, heartbeat_s: float = 60.0) -> Iterator[Ends]:
    wire_read, peer_write = os.pipe()
    peer_read, wire_write = os.pipe()
    open_fds = [wire_read, peer_write, peer_read, wire_write]
    try:
        with Wire(wire_read, wire_write, peer="daisy", silence_s=silence_s, heartbeat_s=heartbeat_s) as wire:
            yield Ends(wire, peer_read, peer_write)
    finally:
        for fd in open_fds:
            with contextlib.suppress(OSError):
                os.close(fd)


def test_two_ends_agree_on_a_version() -> None:
    with wired() as ends:
        ends.say(format_banner(Versions(1, 2)))
        assert ends.wire.greet(OURS) == 1
        assert ends.heard(32) == format_banner(OURS)


@pytest.mark.parametrize(
    "noise", [b"Welcome to daisy\n", b"btrsync wire is a fine thing, is it not?\n", b"b", b"\0" * 99]
)
def test_noise_before_the_banner_is_quoted(noise: bytes) -> None:
    with wired() as ends:
        ends.say(noise)
        os.close(ends.peer_write_fd)
        with pytest.raises(NoBannerError) as caught:
            ends.wire.greet(OURS)
        assert caught.value.noise == noise
        assert "daisy said" in str(caught.value)
        assert caught.value.hint is not None


def test_a_peer_that_never_says_its_banner_is_given_up_in_time() -> None:
    with wired() as ends:
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="did not say the btrsync banner in time"):
            ends.wire.greet(OURS, timeout_s=0.2)
        assert 0.2 <= time.monotonic() - began < 3.0


def test_a_peer_that_hangs_up_before_its_banner_has_closed() -> None:
    with wired() as ends:
        os.close(ends.peer_write_fd)
        with pytest.raises(ClosedError, match="before the btrsync banner"):
            ends.wire.greet(OURS)


def test_messages_arrive_in_order_and_heartbeats_between_them_are_not_seen() -> None:
    heartbeat = FRAME_HEADER.pack(FrameType.HEARTBEAT, 0)
    with wired() as ends:
        ends.say(heartbeat + protocol.encode(Waiting("busy")) + heartbeat * 3 + protocol.encode(Bye()))
        assert ends.wire.receive() == Waiting("busy")
        assert ends.wire.receive() == Bye()


def test_a_message_cut_in_pieces_arrives_whole() -> None:
    frame = protocol.encode(Hello("run", "btrsync 0", "6.1", 2))
    with wired() as ends:
        sender = threading.Thread(target=lambda: list(map(ends.say, (bytes([byte]) for byte in frame))))
        sender.start()
        assert isinstance(ends.wire.receive(), Hello)
        sender.join()


def test_end_of_file_is_never_a_message() -> None:
    with wired() as ends:
        ends.say(protocol.encode(Bye())[:-1])
        os.close(ends.peer_write_fd)
        with pytest.raises(ClosedError):
            ends.wire.receive()


def test_a_silent_peer_is_dead_after_the_limit() -> None:
    with wired(silence_s=0.2) as ends, pytest.raises(UnreachableError, match="has been silent"):
        ends.wire.receive()


def test_heartbeats_keep_a_busy_peer_alive() -> None:
    with wired(silence_s=0.5) as ends:
        heartbeat = FRAME_HEADER.pack(FrameType.HEARTBEAT, 0)

        def beat() -> None:
            for _ in range(10):
                ends.say(heartbeat)
                time.sleep(0.1)
            ends.say(protocol.encode(Bye()))

        thread = threading.Thread(target=beat)
        thread.start()
        assert ends.wire.receive() == Bye()
        thread.join()


def test_an_end_that_is_busy_elsewhere_still_sends_heartbeats() -> None:
    with wired(heartbeat_s=0.02) as ends:
        ends.wire.start_heartbeats()
        assert ends.heard(3 * FRAME_HEADER.size) == FRAME_HEADER.pack(FrameType.HEARTBEAT, 0) * 3


@pytest.mark.parametrize(
    "block", [b"\x09\0\0\0\0", b"\x01\xff\xff\xff\xff", b"\x02\xff\xff\xff\x7f", b"\x03\x01\0\0\0"]
)
def test_a_frame_that_is_none_breaks_the_protocol(block: bytes) -> None:
    with wired() as ends:
        ends.say(block)
        with pytest.raises(ProtocolError, match="daisy"):
            ends.wire.receive()


def test_a_stream_passes_from_pipe_to_pipe_unchanged() -> None:
    content = os.urandom(3 << 20)
    source_read, source_write = os.pipe()
    sink_read, sink_write = os.pipe()
    received = bytearray()
    with wired() as near, wired() as far:

        def write() -> None:
            with open(source_write, "wb") as file:
                file.write(content)

        def relay() -> None:
            # What one wire says, the other hears: two wires joined by hand.
            while block := os.read(near.peer_read_fd, 1 << 16):
                view = memoryview(block)
                while view:
                    view = view[os.write(far.peer_write_fd, view) :]

        def sink() -> None:
            while block := os.read(sink_read, 1 << 16):
                received.extend(block)

        threads = [threading.Thread(target=action) for action in (write, relay, sink)]
        for thread in threads:
            thread.start()
        sent = 0
        taken = 0
        while near.wire.wait_input(source_read):
            moved = near.wire.forward(source_read)
            if not moved:
                break
            sent += moved
            frame = far.wire.receive()
            assert frame == Data(moved)
            rest = moved
            while rest:
                part = far.wire.take(rest, sink_write)
                rest -= part
                time.sleep(0 if part else 0.001)
            taken += moved
        os.close(sink_write)
        threads[0].join()
        threads[2].join()
        near.wire.send(Bye())
        assert far.wire.receive() == Bye()
    threads[1].join()
    for fd in (source_read, sink_read):
        os.close(fd)
    assert sent == taken == len(content)
    assert bytes(received) == content


def test_a_failure_that_comes_while_the_source_is_silent_is_seen() -> None:
    source_read, source_write = os.pipe()
    with wired() as ends:
        ends.say(protocol.encode(Waiting("trouble")))
        assert ends.wire.wait_input(source_read) is False
        assert ends.wire.pending() == Waiting("trouble")
        assert ends.wire.pending() is None
    os.close(source_read)
    os.close(source_write)


def test_a_reader_that_died_is_a_broken_pipe_and_the_rest_of_the_body_can_be_dropped() -> None:
    sink_read, sink_write = os.pipe()
    os.close(sink_read)
    with wired() as ends:
        ends.say(FRAME_HEADER.pack(FrameType.DATA, 1000) + b"x" * 1000 + protocol.encode(Bye()))
        frame = ends.wire.receive()
        assert frame == Data(1000)
        with pytest.raises(BrokenPipeError):
            ends.wire.take(1000, sink_write)
        ends.wire.drop_body()
        assert ends.wire.receive() == Bye()
    os.close(sink_write)


def test_a_full_pipe_takes_nothing_and_a_lost_peer_is_noticed_when_there_is_room() -> None:
    sink_read, sink_write = os.pipe()
    os.set_blocking(sink_write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(sink_write, b"\0" * 65536)
    with wired(silence_s=60.0) as ends:
        ends.say(FRAME_HEADER.pack(FrameType.DATA, 5000) + b"x" * 1000)
        assert ends.wire.receive() == Data(5000)
        assert ends.wire.take(5000, sink_write) == 0
        os.close(ends.peer_write_fd)
        os.read(sink_read, 1 << 20)
        assert ends.wire.take(5000, sink_write) == 1000
        with pytest.raises(ClosedError):
            ends.wire.take(4000, sink_write)
    os.close(sink_read)
    os.close(sink_write)


def test_a_wait_ends_when_a_signal_asks_to_stop() -> None:
    stop_read, stop_write = os.pipe()
    with wired(silence_s=60.0) as ends:
        with ends.wire.stoppable(stop_read):
            threading.Timer(0.1, os.write, (stop_write, b"x")).start()
            with pytest.raises(StopAskedError):
                ends.wire.receive()
            with pytest.raises(StopAskedError):
                ends.wire.receive()
        ends.say(protocol.encode(Bye()))
        assert ends.wire.receive() == Bye()
    os.close(stop_read)
    os.close(stop_write)


def test_a_peer_that_stops_reading_is_dead_after_the_limit_but_not_while_it_gives_signs_of_life() -> None:
    with wired(silence_s=0.4) as ends:

        def talk() -> None:
            for _ in range(100):
                ends.wire.send(Waiting("x" * 10_000))

        stop = time.monotonic() + 1.2
        heartbeat = FRAME_HEADER.pack(FrameType.HEARTBEAT, 0)

        def beat() -> None:
            while time.monotonic() < stop:
                ends.say(heartbeat)
                time.sleep(0.05)

        thread = threading.Thread(target=beat)
        thread.start()
        with pytest.raises(UnreachableError, match="has been silent"):
            talk()
        assert time.monotonic() >= stop
        thread.join()


def test_after_a_frame_was_given_up_half_way_nothing_more_is_sent() -> None:
    source_read, source_write = os.pipe()
    os.write(source_write, b"x" * 60_000)
    with wired(silence_s=0.2) as ends:
        # Nobody reads, so the pipe of 64 KiB fills; the second frame is given up in its middle.
        assert ends.wire.forward(source_read) == 60_000
        os.write(source_write, b"x" * 60_000)
        with pytest.raises(UnreachableError, match="has been silent"):
            ends.wire.forward(source_read)
        with pytest.raises(UnreachableError, match="in the middle of a frame") as caught:
            ends.wire.send(Bye())
        assert not isinstance(caught.value, ClosedError), "it was not the other end"
    os.close(source_read)
    os.close(source_write)


def test_of_many_words_on_how_far_a_slow_transfer_is_the_last_one_is_kept() -> None:
    source_read, source_write = os.pipe()
    os.write(source_write, b"x" * 60_000)
    with wired() as ends:
        assert ends.wire.forward(source_read) == 60_000
        os.write(source_write, b"x" * 60_000)
        # The pipe is full: while the second frame waits for room, word comes once a second.
        for second in range(100):
            ends.say(protocol.encode(Progress(0, second)))
        reader = threading.Timer(0.2, lambda: [os.read(ends.peer_read_fd, 1 << 16) for _ in range(2)])
        reader.start()
        assert ends.wire.forward(source_read, 50_000) == 50_000
        reader.join()
        assert ends.wire.pending() == Progress(0, 99)
        assert ends.wire.pending() is None
    os.close(source_read)
    os.close(source_write)


def test_a_source_that_always_has_more_does_not_hide_that_the_peer_is_silent() -> None:
    with wired(silence_s=0.3) as ends, open("/dev/zero", "rb", buffering=0) as source:

        def read_all() -> None:
            while ends.wire.wait_input(source.fileno()):
                source.read(1000)

        began = time.monotonic()
        with pytest.raises(UnreachableError, match="has been silent"):
            read_all()
        assert 0.25 < time.monotonic() - began < 5


def test_a_pause_ends_in_time_or_with_a_message_and_minds_silence_and_heartbeats() -> None:
    with wired(silence_s=0.4) as ends:
        began = time.monotonic()
        ends.wire.pause(0.1)
        assert 0.1 <= time.monotonic() - began < 0.4
        ends.say(FRAME_HEADER.pack(FrameType.HEARTBEAT, 0))
        ends.wire.pause(0.35)
        ends.say(protocol.encode(Waiting("somebody")))
        ends.wire.pause(60)
        assert ends.wire.pending() == Waiting("somebody")
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="has been silent"):
            ends.wire.pause(60)
        assert time.monotonic() - began < 5

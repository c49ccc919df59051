"""What `btrsync serve` does about a `btrfs receive` that stands still, hangs, is killed or finds no room."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from btrsync import partials
from btrsync.errors import NoSpaceError, StalledError
from btrsync.protocol import Committed, End, Failed, Progress
from harness import command, processes, wait
from harness.faults import FullFilesystem
from tests.kernel.test_serve import connected, ended, equal, hang_up
from tests.kernel.test_serve_partials import going_on, kept, names, often, rest_of
from tests.kernel.test_serve_stops import children, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from btrsync.protocol import Begin
    from tests.kernel.test_serve import Client, Place

pytest_plugins = ["tests.kernel.test_serve"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")

FIFREEZE, FITHAW = 0xC0045877, 0xC0045878
"""<linux/fs.h>"""
HASTY = """
from btrsync import cli, piece
from btrsync.system import process
piece.STOPPING_S = process.KILL_GRACE_S = 1.0
raise SystemExit(cli.main())
"""
"""A `btrsync` that waits less long for what does not come."""
AT_FIRST_BYTES = 3 << 20
LAST_BYTES = 500_000
ONCE_BYTES = 5 << 19
"""After so much comes a checkpoint, and no second one before the end of the stream that is sent here."""


def state(pid: int) -> str:
    info = processes.read(pid)
    return info.state if info is not None else ""


def has_read_all(receive: int) -> None:
    """Wait until receive waits for more."""
    channel = Path(f"/proc/{receive}/wchan")
    wait.until(lambda: "pipe_read" in channel.read_text(), timeout_s=10, what="a receive that has read all")


def checkpointed(client: Client, begin: Begin, block: bytes) -> int:
    """Send the beginning of a stream, wait for its first checkpoint, and return the present receive's pid."""
    client.begin(begin)
    client.data(block)
    while not isinstance(message := client.wire.receive(), Progress) or not message.offset_bytes:
        pass
    (receive,) = children(client.server.pid)
    return receive


def failure(client: Client) -> Failed:
    while isinstance(message := client.wire.receive(), Progress):
        pass
    assert isinstance(message, Failed), message
    return message


def goes_on_to_the_end(place: Place, kept_bytes: int) -> None:
    """The next connection finds what was kept, and the backup becomes whole from there."""
    stream = place.stream("big")
    with connected(place) as client:
        (entry,) = client.hello().partials["share"]
        assert entry.offset_bytes == kept_bytes > 0
        answer = client.send(going_on(place.begin("big"), entry), rest_of(stream, entry))
        assert isinstance(answer, Committed), answer
    assert names(place) == ["big"]
    equal(place, "big")


def stopped_behind_a_checkpoint(client: Client, place: Place) -> int:
    """Stop receive behind a checkpoint, and send all that is left; return its pid."""
    stream = place.stream("big")
    receive = checkpointed(client, place.begin("big"), stream[:-LAST_BYTES])
    has_read_all(receive)
    os.kill(receive, signal.SIGSTOP)
    client.data(stream[-LAST_BYTES:])
    return receive


def test_a_receive_that_stands_still_is_killed_and_the_last_checkpoint_kept(
    place: Place, tmp_path: Path
) -> None:
    with connected(place, config=often(place, tmp_path, checkpoint_bytes=ONCE_BYTES)) as client:
        client.hello()
        receive = stopped_behind_a_checkpoint(client, place)
        client.wire.send(End(len(place.stream("big"))))
        # The fault: there is a process and a line that lives, and nothing else happens for as long as one likes.
        client.wire.pause(3.0)
        assert not isinstance(client.wire.pending(), Failed)
        assert state(receive) == "T"
        hang_up(client)
        os.kill(client.server.pid, signal.SIGKILL)
    config = often(place, tmp_path, checkpoint_bytes=ONCE_BYTES, receive_timeout_s=1)
    os.kill(receive, signal.SIGKILL)
    with connected(place, config=config) as client:
        client.hello()
        receive = stopped_behind_a_checkpoint(client, place)
        client.wire.send(End(len(place.stream("big"))))
        failed = failure(client)
        assert "btrfs receive stood still for 1 s and was killed" in failed.message
        assert "what came up to the last checkpoint is kept" in failed.message
        assert (failed.is_retryable, failed.exit_status) == (True, StalledError.exit_status)
        assert not state(receive)
    goes_on_to_the_end(place, failed.kept_bytes)


def test_a_receive_that_does_not_come_to_its_end_is_killed_too(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    # The second piece has taken all, and stands still before it ends.
    wrapped(
        tmp_path,
        monkeypatch,
        f'echo >> {count}; $REAL "$@"; status=$?; [ $(wc -l < {count}) -lt 2 ] || kill -STOP $$; exit $status',
    )
    stream = place.stream("big")
    config = often(place, tmp_path, checkpoint_bytes=ONCE_BYTES, receive_timeout_s=2)
    with connected(place, config=config) as client:
        client.hello()
        receive = checkpointed(client, place.begin("big"), stream[:AT_FIRST_BYTES])
        client.data(stream[AT_FIRST_BYTES:])
        client.wire.send(End(len(stream)))
        wait.until(lambda: state(receive) == "T", timeout_s=10, what="a receive that stands still")
        failed = failure(client)
        assert "stood still for 2 s" in failed.message
        assert failed.is_retryable
    monkeypatch.undo()
    goes_on_to_the_end(place, failed.kept_bytes)


def test_a_receive_that_is_only_slow_is_waited_for(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It takes all together much longer than it may stand still, and never that long for a part.
    wrapped(
        tmp_path,
        monkeypatch,
        f'{sys.executable} -c "import sys, time\n'
        "while block := sys.stdin.buffer.read(150_000):\n"
        '    sys.stdout.buffer.write(block); sys.stdout.buffer.flush(); time.sleep(0.5)" | $REAL "$@"; exit',
    )
    stream = place.stream("s1")
    with connected(place, config=often(place, tmp_path, receive_timeout_s=1)) as client:
        client.hello()
        assert isinstance(client.send(place.begin("s1"), stream), Committed)
    equal(place, "s1")


def test_a_server_that_is_asked_to_stop_does_not_wait_for_a_receive_that_stands_still(
    place: Place, tmp_path: Path
) -> None:
    config = often(place, tmp_path, checkpoint_bytes=ONCE_BYTES)
    with connected(place, config=config, program=("-c", HASTY)) as client:
        client.hello()
        stopped_behind_a_checkpoint(client, place)
        os.kill(client.server.pid, signal.SIGTERM)
        failed = failure(client)
        assert "was asked to stop" in failed.message
        assert failed.is_retryable
        assert ended(client) == 128 + signal.SIGTERM
    goes_on_to_the_end(place, failed.kept_bytes)


def test_a_server_that_is_asked_to_stop_as_receive_does_not_end_keeps_the_last_checkpoint(
    place: Place, tmp_path: Path
) -> None:
    config = often(place, tmp_path, checkpoint_bytes=ONCE_BYTES)
    with connected(place, config=config, program=("-c", HASTY)) as client:
        client.hello()
        stopped_behind_a_checkpoint(client, place)
        client.wire.send(End(len(place.stream("big"))))
        client.wire.pause(1.0)
        os.kill(client.server.pid, signal.SIGTERM)
        assert ended(client) == 128 + signal.SIGTERM
    goes_on_to_the_end(place, kept(place).offset_bytes)


@contextlib.contextmanager
def frozen(path: Path) -> Iterator[None]:
    """A filesystem that answers nobody who writes: each hangs in the kernel, where no signal reaches him."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, FIFREEZE, 0)
        try:
            yield
        finally:
            fcntl.ioctl(fd, FITHAW, 0)
    finally:
        os.close(fd)


def test_a_receive_that_hangs_in_the_kernel_is_left_to_a_later_run_and_keeps_the_lock(
    place: Place, tmp_path: Path
) -> None:
    stream = place.stream("big")
    config = often(place, tmp_path, checkpoint_bytes=ONCE_BYTES, receive_timeout_s=2)
    with connected(place, config=config, program=("-c", HASTY)) as client:
        client.hello()
        receive = checkpointed(client, place.begin("big"), stream[:-LAST_BYTES])
        has_read_all(receive)
        with frozen(place.root):
            client.data(stream[-LAST_BYTES:])
            client.wire.send(End(len(stream)))
            wait.until(lambda: state(receive) == "D", timeout_s=10, what="a receive that hangs")
            failed = failure(client)
            assert "cannot be killed: it hangs in the kernel" in failed.message
            assert failed.is_retryable
            hang_up(client)
            # And is not held up by the same filesystem itself.
            assert ended(client) == 0
            assert state(receive) == "D"
            with (place.directory / ".lock").open() as lock, pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        wait.until(lambda: not state(receive), timeout_s=10, what="the end of receive")
    assert any(name.startswith(".incoming-") for name in names(place))
    goes_on_to_the_end(place, failed.kept_bytes)


def test_a_killed_receive_leaves_the_last_checkpoint_however_often(place: Place, tmp_path: Path) -> None:
    stream, begin = place.stream("big"), place.begin("big")
    with connected(place, config=often(place, tmp_path)) as client:
        client.hello()
        os.kill(checkpointed(client, begin, stream[:AT_FIRST_BYTES]), signal.SIGKILL)
        client.data(stream[AT_FIRST_BYTES:])
        failed = failure(client)
        assert "btrfs receive was killed by signal 9" in failed.message
        assert "what came up to the last checkpoint is kept" in failed.message
    entry = kept(place)
    assert entry.offset_bytes == failed.kept_bytes
    # It is not the partial's fault, so it is not given up for it.
    for _ in range(partials.MAX_FAILURES):
        with connected(place) as client:
            client.hello()
            client.begin(going_on(begin, entry))
            client.data(rest_of(stream, entry)[: 1 << 20])
            wait.until(lambda: list(place.root.glob("*/*/.incoming-*")), timeout_s=10, what="a receive")
            os.kill(children(client.server.pid)[0], signal.SIGKILL)
            client.data(rest_of(stream, entry)[1 << 20 :])
            assert failure(client).kept_bytes == entry.offset_bytes
    goes_on_to_the_end(place, entry.offset_bytes)


def test_a_transfer_that_found_no_room_goes_on_once_there_is_some(place: Place, tmp_path: Path) -> None:
    stream, begin = place.stream("big"), place.begin("big")
    # What other tests have deleted would come free meanwhile.
    command.run(["btrfs", "subvolume", "sync", place.root])
    with FullFilesystem(place.root, free_bytes=3 << 20):
        with connected(place, config=often(place, tmp_path)) as client:
            client.hello()
            failed = client.send(begin, stream)
            assert isinstance(failed, Failed), failed
            assert failed.exit_status == NoSpaceError.exit_status
            assert "what came up to the last checkpoint is kept" in failed.message
        entry = kept(place)
        assert entry.offset_bytes == failed.kept_bytes > 0
        assert len(names(place)) == 2, "a partial and its record"
        for _ in range(partials.MAX_FAILURES):
            with connected(place, config=often(place, tmp_path, checkpoint_bytes=1 << 30)) as client:
                client.hello()
                answer = client.send(going_on(begin, entry), rest_of(stream, entry))
                assert isinstance(answer, Failed)
                assert answer.exit_status == NoSpaceError.exit_status
        assert kept(place) == entry
    goes_on_to_the_end(place, entry.offset_bytes)

"""Pipelines of one to four stages, each stage made to fail at each place; our own code at their ends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from btrsync.errors import CommandNotFoundError, PipelineError, RefusedError
from btrsync.system import pipeline
from btrsync.system.pipeline import DEVNULL, PIPE, Stage

if TYPE_CHECKING:
    from pathlib import Path

LENGTHS = (1, 2, 3, 4)
PLACES = [(length, place) for length in LENGTHS for place in range(length)]

ENDLESS = ["yes"]
RELAY = ["cat"]
SWALLOWS = ["sh", "-c", "cat >/dev/null"]
COMPLAINS_OF_THE_END = ["sh", "-c", "cat >/dev/null; echo unexpected end of file >&2; exit 1"]

FAILURES = {
    "at once": ("echo broke >&2; exit 3", 3),
    "half way": ("head -c 300000 /dev/zero; echo broke >&2; exit 3", 3),
    "after reading some": ("head -c 300000 >/dev/null; echo broke >&2; exit 3", 3),
    "by a signal": ("echo broke >&2; kill -9 $$", -9),
}


def shell(script: str) -> list[str]:
    return ["sh", "-c", script]


def stages(length: int, **replaced: list[str]) -> list[Stage]:
    """Return a pipeline that never ends by itself: endless, relays, swallows; some stages replaced."""
    argvs = [ENDLESS, *[RELAY] * (length - 2), SWALLOWS][:length] if length > 1 else [ENDLESS]
    named = {f"stage{number}": argv for number, argv in enumerate(argvs)}
    assert replaced.keys() <= named.keys()
    return [Stage(name, replaced.get(name, argv)) for name, argv in named.items()]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_pipeline_that_succeeds_returns_how_each_stage_ended(length: int, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "in").write_bytes(content)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        exits = pipeline.run(
            [Stage(f"stage{number}", RELAY) for number in range(length)],
            stdin=source.fileno(),
            stdout=target.fileno(),
        )
    assert [exit.name for exit in exits] == [f"stage{number}" for number in range(length)]
    assert not any(exit.has_failed for exit in exits)
    assert (tmp_path / "out").read_bytes() == content


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize(("length", "place"), PLACES)
@pytest.mark.parametrize("below", [RELAY, COMPLAINS_OF_THE_END], ids=["calm", "complaining"])
def test_the_culprit_is_who_died_first_not_who_was_broken_by_it(
    length: int, place: int, failure: str, below: list[str]
) -> None:
    script, status = FAILURES[failure]
    replaced = {f"stage{place}": shell(script)}
    replaced |= {f"stage{number}": below for number in range(place + 1, length)}
    with pytest.raises(PipelineError) as caught:
        pipeline.run(stages(length, **replaced))
    culprit = caught.value.culprit
    assert (culprit.name, culprit.returncode, culprit.stderr) == (f"stage{place}", status, "broke\n")
    assert len(caught.value.exits) == length
    above = [exit.returncode for exit in caught.value.exits[:place]]
    assert above == [-13] * place


@pytest.mark.parametrize(("length", "place"), [(length, place) for length, place in PLACES if place > 0])
def test_who_stops_reading_is_the_culprit_when_sigpipe_is_all_there_is(length: int, place: int) -> None:
    with pytest.raises(PipelineError, match="stopped reading before the end") as caught:
        pipeline.run(stages(length, **{f"stage{place}": ["head", "-c", "10"]}))
    assert caught.value.culprit.name == f"stage{place}"
    assert caught.value.culprit.returncode == 0


def test_a_sigpipe_reported_through_a_shell_is_one_too() -> None:
    with pytest.raises(PipelineError, match="stopped reading") as caught:
        pipeline.run([Stage("shell", shell("yes; exit $?")), Stage("reader", ["head", "-c", "10"])])
    assert [exit.returncode for exit in caught.value.exits] == [141, 0]
    assert caught.value.culprit.name == "reader"


@pytest.mark.parametrize(("length", "place"), PLACES)
def test_a_missing_program_ends_the_stages_already_started(length: int, place: int) -> None:
    with pytest.raises(CommandNotFoundError, match="no-such-program"):
        pipeline.run(stages(length, **{f"stage{place}": ["no-such-program"]}))
    # nothing_left, which every test here has, saw to the processes and the descriptors


def test_one_stage_twice_is_two_stages() -> None:
    again = Stage("relay", RELAY)
    assert len(pipeline.run([again, again, again])) == 3


def test_an_end_of_our_own_is_refused_where_nobody_would_use_it() -> None:
    with pytest.raises(ValueError, match=r"pipeline\.spawn"):
        pipeline.run([Stage("relay", RELAY)], stdin=PIPE)


# Our own code at an end.


def read_all(fd: int) -> bytes:
    blocks = []
    while block := os.read(fd, 1 << 20):
        blocks.append(block)
    return b"".join(blocks)


def read_all_then(fd: int, error: Exception) -> None:
    read_all(fd)
    raise error


def read_some_then(fd: int, error: Exception) -> None:
    os.read(fd, 100)
    raise error


def write_then(fd: int, error: Exception) -> None:
    os.write(fd, b"content")
    raise error


def write_to_a_peer_that_left() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    try:
        os.write(write_fd, b"content")
    finally:
        os.close(write_fd)


def write_zeros_for_ever(fd: int) -> None:
    while True:
        os.write(fd, bytes(1 << 16))


@pytest.mark.parametrize("length", LENGTHS)
def test_what_we_feed_comes_out_where_we_drain(length: int) -> None:
    chain = [Stage(f"stage{number}", RELAY) for number in range(length)]
    with pipeline.spawn(chain, stdin=PIPE, stdout=PIPE) as running:
        os.write(running.feed_fd, b"content")
        running.close_feed()
        assert read_all(running.drain_fd) == b"content"


def test_leaving_tells_the_stages_that_the_feed_is_at_its_end(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as target:
        with pipeline.spawn([Stage("relay", RELAY)] * 2, stdin=PIPE, stdout=target.fileno()) as running:
            os.write(running.feed_fd, b"content")
    assert (tmp_path / "out").read_bytes() == b"content"


@pytest.mark.parametrize(("length", "place"), PLACES)
def test_a_stage_that_breaks_our_feed_is_the_culprit(length: int, place: int) -> None:
    replaced = {"stage0": RELAY, f"stage{place}": shell("head -c 1000 >/dev/null; echo broke >&2; exit 3")}
    with pytest.raises(PipelineError) as caught:
        with pipeline.spawn(stages(length, **replaced), stdin=PIPE) as running:
            write_zeros_for_ever(running.feed_fd)
    assert (caught.value.culprit.name, caught.value.culprit.returncode) == (f"stage{place}", 3)
    assert isinstance(caught.value.__cause__, BrokenPipeError)
    assert caught.value.exits[0].returncode == -13  # that is us


@pytest.mark.parametrize("ending", ["exit 0", "exec <&-; sleep 1000"])
def test_a_stage_that_stops_reading_our_feed_is_the_culprit(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "UPSTREAM_GRACE_S", 0.2)
    with pytest.raises(PipelineError, match="stopped reading before the end") as caught:
        with pipeline.spawn([Stage("reader", shell(ending))], stdin=PIPE) as running:
            write_zeros_for_ever(running.feed_fd)
    assert caught.value.culprit.name == "reader"


def test_a_stage_that_fails_while_we_feed_without_breaking_our_pipe_is_the_culprit() -> None:
    with pytest.raises(PipelineError, match="receive exited with status 1: no room"):
        with pipeline.spawn(
            [Stage("receive", shell("cat >/dev/null; echo no room >&2; exit 1"))], stdin=PIPE
        ) as running:
            os.write(running.feed_fd, b"content")


def test_our_refusal_is_the_error_whatever_the_reader_says_of_the_cut() -> None:
    with pytest.raises(RefusedError, match="an absolute path"):
        with pipeline.spawn([Stage("receive", COMPLAINS_OF_THE_END)], stdin=PIPE) as running:
            write_then(running.feed_fd, RefusedError("an absolute path"))


def test_a_broken_pipe_that_is_not_the_feed_blames_no_stage() -> None:
    with pytest.raises(BrokenPipeError):
        with pipeline.spawn([Stage("relay", COMPLAINS_OF_THE_END)], stdin=PIPE):
            write_to_a_peer_that_left()


@pytest.mark.parametrize(("length", "place"), PLACES)
def test_a_stage_that_failed_above_our_drain_is_the_culprit_of_our_early_end(length: int, place: int) -> None:
    replaced = {f"stage{number}": RELAY for number in range(length)}
    replaced |= {"stage0": ENDLESS} if place else {}
    replaced |= {f"stage{place}": shell("head -c 1000 /dev/zero; echo broke >&2; exit 3")}
    with pytest.raises(PipelineError) as caught:
        with pipeline.spawn(stages(length, **replaced), stdout=PIPE) as running:
            read_all_then(running.drain_fd, EOFError("the stream ends early"))
    assert (caught.value.culprit.name, caught.value.culprit.returncode) == (f"stage{place}", 3)
    assert isinstance(caught.value.__cause__, EOFError)


def test_our_refusal_of_what_we_drain_is_the_error_though_it_breaks_the_writer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pipeline, "UPSTREAM_GRACE_S", 1000)  # nobody waits for a writer that lives
    script = "trap '' PIPE; yes; echo write error >&2; exit 255"  # as ssh does
    with pytest.raises(RefusedError):
        with pipeline.spawn([Stage("ssh", shell(script))], stdout=PIPE) as running:
            read_some_then(running.drain_fd, RefusedError("two subvolumes"))


def test_our_own_error_at_a_good_end_stays_the_error() -> None:
    with pytest.raises(RefusedError):
        with pipeline.spawn([Stage("send", shell("echo whole"))], stdout=PIPE) as running:
            read_all_then(running.drain_fd, RefusedError("the digest differs"))


def test_a_stage_that_fails_after_we_drained_it_all_is_noticed_on_leaving() -> None:
    with pytest.raises(PipelineError, match="send exited with status 1"):
        with pipeline.spawn([Stage("send", shell("echo most; exit 1"))], stdout=PIPE) as running:
            read_all(running.drain_fd)


def test_we_are_the_culprit_when_we_stop_reading() -> None:
    with pytest.raises(PipelineError, match=r"btrsync itself .* stopped reading"):
        with pipeline.spawn(stages(1), stdout=PIPE) as running:
            os.read(running.drain_fd, 100)


def test_an_interrupt_ends_all_stages_and_stays_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        with pipeline.spawn(stages(3), stdin=DEVNULL) as running:
            raise KeyboardInterrupt
    assert all(stage.poll() is not None for stage in running.processes)


def test_an_end_that_is_not_ours_cannot_be_used() -> None:
    with pipeline.spawn([Stage("relay", RELAY)]) as running:
        with pytest.raises(ValueError, match="not fed by us"):
            _ = running.feed_fd
        with pytest.raises(ValueError, match="not drained by us"):
            _ = running.drain_fd

"""The wire's words: banners, frame headers, messages."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrsync import protocol
from btrsync.errors import ProtocolError
from btrsync.protocol import (
    BANNER_BYTES,
    FRAME_HEADER,
    MAX_CONTROL_BYTES,
    MAX_DATA_BYTES,
    Begin,
    FrameType,
    Versions,
    agree,
    format_banner,
    parse_banner,
    parse_frame_header,
)


@given(st.integers(0, 999), st.integers(0, 999))
def test_a_banner_says_the_versions_it_was_made_of(one: int, other: int) -> None:
    versions = Versions(min(one, other), max(one, other))
    banner = format_banner(versions)
    assert len(banner) == BANNER_BYTES
    assert banner.decode("ascii").endswith("\n")
    assert parse_banner(banner) == versions


@pytest.mark.parametrize(
    "line", [b"", b"Welcome to daisy, all of you!!!\n", b"btrsync wire 1-2", b"btrsync wire 002-001".ljust(31) + b"\n",
             b"btrsync wire one-two".ljust(31) + b"\n", b"\xff" * 32]
)  # fmt: skip
def test_anything_else_is_no_banner(line: bytes) -> None:
    assert parse_banner(line) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [((1, 1), (1, 1), 1), ((1, 2), (2, 3), 2), ((2, 3), (1, 2), 2), ((1, 1), (1, 2), 1)],
)
def test_neighbouring_versions_agree_on_the_newest_common_one(
    ours: tuple[int, int], theirs: tuple[int, int], expected: int
) -> None:
    assert agree(Versions(*ours), Versions(*theirs), peer="daisy") == expected


def test_an_older_peer_is_the_one_to_upgrade() -> None:
    with pytest.raises(ProtocolError) as caught:
        agree(Versions(2, 3), Versions(1, 1), peer="daisy")
    assert caught.value.hint is not None
    assert "upgrade btrsync on daisy" in caught.value.hint


def test_against_a_newer_peer_this_machine_is_the_one_to_upgrade() -> None:
    with pytest.raises(ProtocolError) as caught:
        agree(Versions(1, 1), Versions(2, 3), peer="daisy")
    assert caught.value.hint is not None
    assert "upgrade btrsync on this machine" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "size_bytes"),
    [(FrameType.CONTROL, MAX_CONTROL_BYTES + 1), (FrameType.DATA, MAX_DATA_BYTES + 1), (FrameType.HEARTBEAT, 1),
     (0, 0), (4, 0), (255, 5)],
)  # fmt: skip
def test_a_frame_of_unknown_type_or_size_is_refused(kind: int, size_bytes: int) -> None:
    with pytest.raises(ProtocolError, match="daisy"):
        parse_frame_header(FRAME_HEADER.pack(kind, size_bytes), peer="daisy")


@pytest.mark.parametrize("kind", list(FrameType))
def test_a_frame_within_its_limit_is_taken(kind: FrameType) -> None:
    assert parse_frame_header(FRAME_HEADER.pack(kind, 0), peer="daisy") == (kind, 0)


def test_a_message_comes_back_as_it_went() -> None:
    begin = Begin("share", "snapshot-1", UUID(int=5), 7, send_parent=UUID(int=3), clone_sources=[UUID(int=2)])
    frame = protocol.encode(begin)
    header = parse_frame_header(frame[: FRAME_HEADER.size], peer="daisy")
    assert header == (FrameType.CONTROL, len(frame) - FRAME_HEADER.size)
    assert protocol.decode(frame[FRAME_HEADER.size :], peer="daisy") == begin


def test_a_newer_peers_unknown_fields_are_passed_over() -> None:
    payload = msgspec.msgpack.encode({"type": "bye", "weather": "fine"})
    assert protocol.decode(payload, peer="daisy") == protocol.Bye()


@given(st.binary(max_size=200))
def test_no_payload_raises_anything_but_a_protocol_error(payload: bytes) -> None:
    try:
        message = protocol.decode(payload, peer="daisy")
    except ProtocolError as error:
        assert "daisy" in str(error)  # noqa: PT017  both ways are right: it must only be no other error
    else:
        assert isinstance(message, protocol.Message)

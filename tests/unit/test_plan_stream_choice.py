"""Which stream is sent, by what both ends are."""

from __future__ import annotations

import pytest

from btrsync.errors import RefusedError
from btrsync.plan.stream_choice import COMPRESSED, PLAIN, can_receive, choose_stream

GOOD = ("6.2", "6.2.1", "v6.2", "6.10", "6.14", "v6.14", "6.14-rc1", "6.16.1-custom", "7.0", "10.0", None)
OLD = (
    "5.10.1",
    "6.0.2",
    "6.1.3",
    "6.2-rc1",
    "v6.2-rc2",
    "4.20",
    "unknown",
    "",
    "6",
    "six.two",
    "-6.2",
    "6.x",
)


def choose(compressed: str, progs_version: str | None, send_protocol: int = 3) -> object:
    return choose_stream(
        compressed,  # type: ignore[arg-type]
        send_protocol=send_protocol,
        progs_version=progs_version,
        target="daisy",
    )


@pytest.mark.parametrize("progs_version", GOOD)
def test_compressed_data_is_sent_where_both_ends_can(progs_version: str | None) -> None:
    assert choose("auto", progs_version) == choose("always", progs_version) == COMPRESSED
    assert choose("auto", progs_version, send_protocol=2) == COMPRESSED
    assert COMPRESSED.stream_version == 2


@pytest.mark.parametrize("progs_version", OLD)
def test_an_old_or_unknown_receiver_gets_the_plain_stream(progs_version: str) -> None:
    assert choose("auto", progs_version) == PLAIN
    with pytest.raises(RefusedError, match=f"daisy has btrfs-progs {progs_version}, and that takes 6.2"):
        choose("always", progs_version)


def test_an_old_kernel_makes_the_plain_stream_and_is_named_where_that_is_not_enough() -> None:
    assert choose("auto", "6.14", send_protocol=1) == PLAIN
    with pytest.raises(RefusedError, match="this kernel's send streams are of version 1"):
        choose("always", "6.14", send_protocol=1)


def test_who_never_wants_compressed_data_gets_the_plain_stream() -> None:
    assert choose("never", "6.14") == choose("never", "unknown", send_protocol=1) == PLAIN


def test_a_plain_stream_is_for_every_receiver() -> None:
    assert all(can_receive(1, version) for version in (*GOOD, *OLD))

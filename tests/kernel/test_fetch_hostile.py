"""A server that means ill: a fetch from it reaches nothing but what it makes, and leaves nothing behind.

What the stock `btrfs receive` does with the same streams is shown in test_hostile_streams.py.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.kernel.hostile_host import ATTACKER, ROOT, HostileHost, hostile_host
from tests.kernel.hostile_streams import ATTACKS, CTRANSID, NEWLINE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from harness import command

pytestmark = pytest.mark.requires("host", "root", "loop", "btrfs")

SERVER = """#!{python}
import sys
from datetime import UTC, datetime
from uuid import UUID
from msgspec.structs import replace
from btrsync.protocol import *
from btrsync.wire import Wire
own, now = UUID({own!r}), datetime.now(UTC)
with Wire(0, 1, peer="victim") as wire:
    wire.greet(OUR_VERSIONS)
    hello = wire.receive()
    wire.send(Hello(hello.run_id, "evil", "0", 2, is_look_only=True, is_server=True))
    wire.send(Inventory({{"job": [BackupEntry("evil", UUID(int=5), own, 1, True, now, 1)]}}))
    fetch = wire.receive()
    begin = Begin("job", "evil", own, {ctransid}, fetch.send_parent, total_bytes={total_bytes})
    wire.send(replace(begin, **{lies}))
    if isinstance(wire.receive(), Ready):
        wire.send(Stream({version}, is_compressed=False))
        stream = open("/opt/evil/stream", "rb").read()
        for at in range(0, len(stream), 1 << 18):
            part = stream[at : at + (1 << 18)]
            wire._write(FRAME_HEADER.pack(FrameType.DATA, len(part)) + part)
        wire.send(End(len(stream)))
        wire.receive()
"""
CHOSEN = [
    "a symbolic link, and data through it", "a file beside the subvolume", "another client's backup renamed",
    "another client's backup as clone source", "another client's backup as parent", "a second subvolume",
    "a device, and data into it", "more data than was announced", "a second stream behind END",
]  # fmt: skip
LIES = {
    "another name": "dict(name='../../victim/job/evil')",
    "another job": "dict(job='..')",
    "another snapshot": "dict(uuid=UUID(int=77))",
    "a parent that nobody asked for": "dict(send_parent=UUID(int=77))",
    "a clone source": "dict(clone_sources=[UUID(int=77)])",
    "a beginning that is not here": "dict(offset_bytes=100, digest=b'x' * 32)",
}


@pytest.fixture(scope="module")
def victim() -> Iterator[HostileHost]:
    with hostile_host() as made:
        made.prepare()
        made.host.write_text(
            "/etc/btrsync/btrsync.toml",
            '[targets.daisy]\nhost = "daisy"\nretries = 0\n'
            f'[jobs.job]\nsubvolume = "{ROOT}/live"\nsnapshots = "{ATTACKER}"\ntargets = ["daisy"]\n',
            mode=0o600,
        )
        yield made


def fetched(
    victim: HostileHost, stream: bytes, *, version: int = 1, total_bytes: int | None = None, lies: str = "{}"
) -> command.Completed:
    """Fetch from a server that sends `stream` and lies in its words, and return how that ended."""
    script = SERVER.format(
        python=sys.executable, own=str(victim.place.own), ctransid=CTRANSID, version=version,
        total_bytes=total_bytes, lies=lies,
    )  # fmt: skip
    victim.host.write_text("/opt/evil/ssh", script, mode=0o755)
    (victim.host.path("/opt/evil") / "stream").write_bytes(stream)
    argv = [sys.executable, "-m", "btrsync", "fetch", "job", "--json"]
    done = victim.host.run(argv, env={"PATH": f"/opt/evil:{os.environ['PATH']}"}, ok=None)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def said(done: command.Completed) -> str:
    (outcome,) = json.loads(done.stdout.splitlines()[-1])["outcomes"]
    assert outcome["result"] == "failed", outcome
    return str(outcome["error"]["message"])


def test_a_stream_that_means_ill_reaches_nothing_and_leaves_nothing(victim: HostileHost) -> None:
    before = victim.listing()
    for name in CHOSEN:
        attack = ATTACKS[name]
        done = fetched(
            victim, attack.build(victim.place), version=attack.version, total_bytes=attack.total_bytes
        )
        assert attack.refusal in said(done), name
        assert victim.is_untouched(), name
        assert victim.listing() == before, name


def test_a_server_that_begins_something_else_than_was_asked_for_is_left(victim: HostileHost) -> None:
    before = victim.listing()
    for name, lies in LIES.items():
        done = fetched(victim, NEWLINE(victim.place), lies=lies)
        assert done.returncode == 10, name
        assert "than" in said(done), name
        assert victim.listing() == before, name


def test_the_same_server_is_believed_where_it_does_nothing_wrong(victim: HostileHost) -> None:
    done = fetched(victim, NEWLINE(victim.place))
    assert done.returncode == 0, done.stderr
    assert victim.listing()["mallory/job/evil"][1:] == (UUID(str(victim.place.own)), True)

"""Several sessions of one run at one `btrsync serve` each, and a run that comes after them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from btrsync.errors import RefusedError
from btrsync.protocol import Committed, Failed, Hello, Inventory, Waiting
from tests.kernel.test_serve import connected, cut, equal, hang_up, replace_message

if TYPE_CHECKING:
    from tests.kernel.test_serve import Client, Place

pytest_plugins = ["tests.kernel.test_serve"]
pytestmark = pytest.mark.requires("root", "loop", "btrfs")


def say_hello(client: Client, run_id: str, session: int) -> object:
    client.wire.send(Hello(run_id, "test", "0", 1, session=session))
    client.expect(Hello)
    while isinstance(message := client.wire.receive(), Waiting):
        pass
    return message


def test_two_sessions_of_one_run_receive_at_the_same_time(place: Place) -> None:
    run_id = uuid4().hex
    with connected(place) as first, connected(place) as second:
        assert isinstance(say_hello(first, run_id, 0), Inventory)
        assert isinstance(say_hello(second, run_id, 1), Inventory)
        first.begin(place.begin("s1"))
        stream = place.stream("s1")
        first.data(cut(stream))
        other = replace_message(place.begin("s2"), job="other")
        assert isinstance(second.send(other, place.stream("s2")), Committed)
        # The first one's receive is still at work: nobody swept it.
        assert len(list(place.root.glob("*/share/.incoming-*"))) == 1
        again = second.send(replace_message(place.begin("s2")), place.stream("s2"))
        assert isinstance(again, Failed)
        assert "another session of this run" in again.message
        hang_up(first)
    assert [path.name for path in place.root.glob("*/other/*")] == ["s2"]


def test_a_session_of_a_run_whose_turn_it_is_not_is_refused(place: Place) -> None:
    with connected(place) as first, connected(place) as second, connected(place) as third:
        refused = say_hello(second, uuid4().hex, 1)
        assert isinstance(refused, Failed)
        assert isinstance(say_hello(first, uuid4().hex, 0), Inventory)
        refused = say_hello(third, uuid4().hex, 1)
        assert isinstance(refused, Failed)
        assert refused.exit_status == RefusedError.exit_status
        assert "not being served" in refused.message


def test_a_new_run_waits_for_the_last_session_of_the_old_one(place: Place) -> None:
    run_id = uuid4().hex
    with connected(place) as first, connected(place) as second, connected(place) as third:
        say_hello(first, run_id, 0)
        say_hello(second, run_id, 1)
        second.begin(place.begin("s1"))
        second.data(cut(place.stream("s1")))
        hang_up(first)
        third.wire.send(Hello(uuid4().hex, "test", "0", 1))
        third.expect(Hello)
        third.expect(Waiting)
        time.sleep(0.3)
        assert len(list(place.root.glob("*/share/.incoming-*"))) == 1
        hang_up(second)
        while isinstance(inventory := third.wire.receive(), Waiting):
            pass
        assert isinstance(inventory, Inventory)
        assert len(inventory.partials["share"]) == 1
        assert isinstance(third.send(place.begin("s1"), place.stream("s1")), Committed)
    equal(place, "s1")

"""The lines that `array create`, `add` and `replace` write: nothing else in a file is touched."""

from __future__ import annotations

import tomllib
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btrsync.plan.config_text import with_member, with_member_instead, with_uuid, without_member
from btrsync.plan.fstab import fstab_line, with_line
from btrsync.plan.profiles import COPIES, FEWEST_DISKS, default_metadata, profile_advice, room_bytes

UUID_ = UUID("7ebc7d8d-35c6-4d98-8457-3323c242e9fe")
SEED_LINE = (
    "UUID=0123456-7890-acbd-ef01-234567890ab /MirrorRoot           btrfs"
    "   noauto,noatime,autodefrag,compress-force=lzo,space_cache,subvol=mirror 0 0"
)
CONFIGURATION = """\
root = "/MirrorRoot/btrsync"  # where backups go

[arrays.other]
members = ["/dev/a"]
uuid = "0d09b605-a52b-48f4-8ad5-ed26456ab6cd"

[arrays.mirror] # the big one
# members = ["/dev/2"]
# uuid = "none yet"
members = [
  "/dev/1",  # top bay, "/dev/2"
  '/dev/2',
]
mount_point = "/MirrorRoot"

[clients.workstation]
quota_bytes = 5
"""


def lines_changed(before: str, after: str) -> list[str]:
    return [line for line in after.splitlines() if line not in before.splitlines()]


def test_a_uuid_is_written_into_its_own_table_only() -> None:
    for array in ("mirror", "other"):
        changed = with_uuid(CONFIGURATION, array, UUID_)
        assert changed is not None
        assert lines_changed(CONFIGURATION, changed) == [f'uuid = "{UUID_}"']
        assert tomllib.loads(changed)["arrays"][array]["uuid"] == str(UUID_)
        assert with_uuid(changed, array, UUID_) == changed


def test_a_member_is_added_taken_out_and_put_in_anothers_place() -> None:
    more = with_member(CONFIGURATION, "mirror", "/dev/3")
    assert more is not None
    assert lines_changed(CONFIGURATION, more) == ['  "/dev/3",']
    assert without_member(more, "mirror", "/dev/3") == CONFIGURATION
    assert without_member(CONFIGURATION, "mirror", "/dev/3") == CONFIGURATION
    instead = with_member_instead(more, "mirror", "/dev/2", "/dev/9")
    assert instead is not None
    assert tomllib.loads(instead)["arrays"]["mirror"]["members"] == ["/dev/1", "/dev/9", "/dev/3"]
    assert '# top bay, "/dev/2"' in instead and '# members = ["/dev/2"]' in instead
    one = with_member(CONFIGURATION, "other", "/dev/b")
    assert one is not None and 'members = ["/dev/a", "/dev/b"]' in one


@pytest.mark.parametrize(
    "text",
    [
        'arrays = { mirror = { members = ["/dev/1"] } }\n',
        'arrays.mirror.members = ["/dev/1"]\n',
        '[arrays]\nmirror.members = ["/dev/1"]\n',
    ],
)
def test_a_layout_that_cannot_be_changed_safely_is_left_to_a_person(text: str) -> None:
    assert with_uuid(text, "mirror", UUID_) is None
    assert with_member(text, "mirror", "/dev/2") is None


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4, unique=True
    ),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_whatever_a_disk_is_called_the_rest_stays(members: list[str], new: str) -> None:
    quoted = ", ".join(msg(member) for member in members)
    text = f"# it\n[arrays.mirror]\nmembers = [{quoted}]  # disks\n[arrays.other]\nmembers = [{quoted}]\n"
    changed = with_member(text, "mirror", new)
    if changed is None:  # a name that only an escape can write: told, not guessed
        return
    tables = tomllib.loads(changed)["arrays"]
    assert (tables["mirror"]["members"], tables["other"]["members"]) == ([*members, new], members)


def msg(text: str) -> str:
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text) + '"'


def test_the_originals_line_becomes_a_comment_and_all_else_stays() -> None:
    before = f"# fstab\nproc /proc proc defaults 0 0\n{SEED_LINE}\n/dev/sda1 / ext4 defaults 0 1"
    line = fstab_line(UUID_, "/MirrorRoot", ["noatime", "subvol=mirror"])
    assert line == f"UUID={UUID_} /MirrorRoot btrfs noauto,noatime,subvol=mirror 0 0"
    edit = with_line(before, line)
    assert (edit.outcome, edit.replaced) == ("replaced", (SEED_LINE,))
    expected = before.replace(SEED_LINE, f"# replaced by btrsync array create: {SEED_LINE}")
    assert edit.text == f"{expected}\n{line}\n"
    assert with_line(edit.text, line).outcome == "there"


@pytest.mark.parametrize(
    ("there", "outcome"),
    [
        (f'UUID="{UUID_}" /MirrorRoot/ btrfs noatime,subvol=mirror,noauto,nofail 0 0', "there"),
        (f"UUID={UUID_} /MirrorRoot btrfs noauto,noatime,space_cache,subvol=mirror 0 0", "replaced"),
        (f"UUID={UUID_} /MirrorRoot btrfs noatime,subvol=mirror 0 0", "replaced"),
        (f"UUID={UUID_} /Elsewhere btrfs noauto,noatime,subvol=mirror 0 0", "added"),
        (f"#UUID={UUID_} /MirrorRoot btrfs noauto,noatime,subvol=mirror 0 0", "added"),
        ("/dev/MirrorVG/MirrorLV /MirrorRoot xfs defaults 0 0", "replaced"),
    ],
)
def test_a_line_that_says_enough_is_left_alone(there: str, outcome: str) -> None:
    line = fstab_line(UUID_, "/MirrorRoot", ["noatime", "subvol=mirror"])
    edit = with_line(f"{there}\n", line)
    assert edit.outcome == outcome
    assert there in edit.text


def test_a_place_with_a_space_is_written_as_fstab_wants_it() -> None:
    assert fstab_line(UUID_, "/My Mirror", ["auto"]) == f"UUID={UUID_} /My\\040Mirror btrfs noauto 0 0"


def test_room_and_advice_follow_the_profile() -> None:
    assert room_bytes("single", [4, 4, 4, 4]) == 16
    assert room_bytes("raid1", [4, 4, 4, 4]) == 8
    assert room_bytes("raid1", [10, 2, 2]) == 4
    assert room_bytes("raid1c3", [10, 10, 2]) == 2
    assert room_bytes("raid0", [4, 3]) == 6
    assert COPIES.keys() == FEWEST_DISKS.keys()
    assert (default_metadata(1), default_metadata(4)) == ("dup", "raid1")
    four = [4 << 40] * 4
    original = "; ".join(profile_advice("single", "raid1", four))
    assert "room for about 16.0 TiB" in original
    assert "one disk lost is data lost: the files that have a part on it are gone" in original
    assert "--data raid1 survives the loss of one disk, with room for about 8.0 TiB" in original
    assert "--metadata raid1c3 would survive the loss of two disks" in original
    assert "2 disks may be lost" in "; ".join(profile_advice("raid1c3", "raid1c3", four))
    assert "metadata raid1 survives the loss of one disk: less" in "; ".join(
        profile_advice("raid1c3", "raid1", four)
    )
    assert "stay unused" in "; ".join(profile_advice("raid1", "raid1", [10 << 40, 2 << 40, 2 << 40]))

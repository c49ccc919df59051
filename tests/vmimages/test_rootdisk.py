"""A root disk belongs to root, whoever made it."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from harness import command
from vmimages import rootdisk
from vmimages.errors import VmError

if TYPE_CHECKING:
    from pathlib import Path

BUILDER = 1000


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a small tree as an ordinary user has it."""
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "etc/two words").write_text("text\n")
    (root / "etc/Főtanúsítvány").touch()
    (root / "link").symlink_to("etc")
    (root / "su").touch()
    for path in (root, *root.rglob("*")):
        os.chown(path, BUILDER, BUILDER, follow_symlinks=False)
    (root / "su").chmod(0o4755)
    return root


def owner(image: Path, path: str) -> tuple[str, str]:
    """Return uid and gid of a file in an image."""
    shown = command.run(["debugfs", "-R", f'stat "{path}"', image]).stdout
    match = re.search(r"User: +(\d+) +Group: +(\d+)", shown)
    assert match, shown
    return match[1], match[2]


PATHS = ("/", "/etc", "/etc/two words", "/etc/Főtanúsítvány", "/link", "/su")


def test_what_a_user_makes_belongs_to_root(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "image"
    rootdisk.make(tree, image)
    assert {owner(image, path) for path in PATHS[1:]} == {(str(BUILDER), str(BUILDER))}, (
        "mke2fs no longer copies owners, and the rest of this test shows nothing"
    )
    monkeypatch.setattr(os, "geteuid", lambda: BUILDER)
    rootdisk.make(tree, image)
    assert {owner(image, path) for path in PATHS} == {("0", "0")}
    assert "Mode:  04755" in command.run(["debugfs", "-R", "stat /su", image]).stdout
    command.run(["e2fsck", "-fn", image])


def test_files_are_added_to_an_image_that_is_there(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    rootdisk.make(tree, image)
    script = tmp_path / "a script"
    script.write_text("#!/bin/sh\n")
    rootdisk.add(image, "etc", {"init": script, "text": tree / "etc/two words"})
    assert command.run(["debugfs", "-R", "cat /etc/init", image]).stdout == "#!/bin/sh\n"
    assert "Mode:  0755" in command.run(["debugfs", "-R", "stat /etc/init", image]).stdout
    assert "Mode:  0644" in command.run(["debugfs", "-R", "stat /etc/text", image]).stdout
    assert owner(image, "/etc/init") == owner(image, "/etc/text") == ("0", "0")
    command.run(["e2fsck", "-fn", image])


def test_what_debugfs_could_not_do_is_raised_though_it_says_so_to_nobody(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    rootdisk.make(tree, image)
    with pytest.raises(VmError, match="could not write"):
        rootdisk.add(image, "no/such", {"init": tree / "su"})
    with pytest.raises(VmError, match="quotation mark"):
        rootdisk.add(image, "etc", {"init": tmp_path / 'a "name"'})

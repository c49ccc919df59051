"""What an image is made of: files that are right, and sentences for those that are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vmimages import spec
from vmimages.errors import VmError

if TYPE_CHECKING:
    from pathlib import Path

RAW: dict[str, Any] = {
    "title": "A suite",
    "sources": ["one", "one-security"],
    "kernels": {"uml": {"package": "user-mode-linux"}},
}


def test_every_image_that_is_shipped_can_be_read_and_its_kernels_come_from_one_of_them() -> None:
    images = [spec.load(name) for name in spec.names()]
    assert {image.name for image in images} == {
        "bullseye", "bookworm", "bookworm-backports", "trixie", "forky",
    }  # fmt: skip
    for image in images:
        assert set(image.kernels) == {"uml", "qemu"}
        assert {kernel.image for kernel in image.kernels.values()} <= set(spec.names())
        assert "python3" in image.packages


def test_a_package_named_with_its_suite_replaces_the_common_one() -> None:
    image = spec.parse("one", {**RAW, "packages": ["ssh/one-backports", "more"]}, ["bash", "ssh"])
    assert image.packages == ("bash", "ssh/one-backports", "more")


def test_a_kernel_comes_from_the_image_itself_unless_another_is_named() -> None:
    kernels = {"uml": {"package": "u", "image": "two"}, "qemu": {"package": "q"}}
    image = spec.parse("one", {**RAW, "kernels": kernels}, [])
    assert {backend: kernel.image for backend, kernel in image.kernels.items()} == {
        "uml": "two",
        "qemu": "one",
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        pytest.param({"colour": "red"}, "the image has no setting colour", id="an unknown setting"),
        pytest.param({"sources": []}, "sources must name at least one suite", id="no suite"),
        pytest.param({"sources": "one"}, "sources must be a list of texts", id="a text for a list"),
        pytest.param({"title": 3}, "title must be a text", id="a number for a text"),
        pytest.param({"kernels": {}}, "kernels must be some of uml, qemu, not none", id="no kernel"),
        pytest.param(
            {"kernels": {"xen": {}}}, "kernels must be some of uml, qemu, not xen", id="another kernel"
        ),
        pytest.param({"kernels": {"uml": {}}}, "package must be a text", id="a kernel without a package"),
        pytest.param(
            {"kernels": {"uml": {"package": "u", "initrd": []}}},
            "kernels.uml has no setting initrd",
            id="an unknown setting of a kernel",
        ),
    ],
)
def test_a_wrong_description_is_told_in_one_sentence(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{problem}$"):
        spec.parse("one", {**RAW, **changes}, [])


def test_an_image_that_does_not_exist_is_told_with_those_that_do() -> None:
    with pytest.raises(VmError, match="there is no image 'windows'") as caught:
        spec.load("windows")
    assert caught.value.hint == f"images: {', '.join(spec.names())}"


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("title =")
    (tmp_path / "packages.txt").touch()
    with pytest.raises(VmError, match=r"broken\.toml: Invalid value"):
        spec.load("broken", tmp_path)


def test_a_comment_in_the_list_of_packages_is_no_package() -> None:
    assert spec.common_packages("# why\n\nbash  # scripts\nsed\n") == ["bash", "sed"]

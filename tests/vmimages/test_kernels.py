"""User Mode Linux takes its libraries from beside it, whatever this host has."""

from __future__ import annotations

import pytest

from vmimages import kernels
from vmimages.errors import VmError

LINKED = b"\x7fELF\0/lib64/ld-linux-x86-64.so.2\0\0librt.so.1\0libc.so.6\0GLIBC_2.38\0main\0"


def test_names_of_libraries_are_replaced_in_place() -> None:
    changed, needed = kernels.with_own_libraries(LINKED)
    assert changed == (b"\x7fELF\0./ld.so\0" + b"\0" * 20 + b"\0./librt.so\0./libc.so\0GLIBC_2.38\0main\0")
    assert len(changed) == len(LINKED)
    assert needed == {"librt.so.1": "./librt.so", "libc.so.6": "./libc.so"}


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(LINKED.replace(b"/lib64/", b"/lib/"), id="another interpreter"),
        pytest.param(LINKED * 2, id="two interpreters"),
        pytest.param(LINKED.replace(b".so.6", b".so").replace(b".so.1", b".so"), id="no library"),
    ],
)
def test_a_program_that_is_linked_otherwise_is_refused(program: bytes) -> None:
    with pytest.raises(VmError, match="otherwise than expected"):
        kernels.with_own_libraries(program)

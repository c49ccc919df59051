"""The page on the original's faults and the tests that show them name each other completely."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEST_NAME = re.compile(r"`(test_[a-z0-9_]+)`")


def test_the_page_names_every_test_of_a_fault_and_no_other() -> None:
    tree = ast.parse((ROOT / "tests/network/test_original_faults.py").read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    listed = (ROOT / "docs/original-faults.md").read_text().partition("## The tests")[2]
    assert sorted(TEST_NAME.findall(listed)) == sorted(name for name in names if name.startswith("test_"))

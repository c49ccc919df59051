"""Load the harness's plugin for every test, and the one that takes some of them to a guest."""

from __future__ import annotations

pytest_plugins = ["harness.plugin", "vmimages.plugin"]

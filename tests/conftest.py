"""Load the harness's plugin for every test."""

from __future__ import annotations

pytest_plugins = ["harness.plugin"]

"""Apt with a private state: what it is told, and what is read from its answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmimages import packages
from vmimages.cache import Cache
from vmimages.errors import VmError
from vmimages.packages import Archive, Package

SHA256 = "5b6825de4263824b78c4c51f6476414f3b4e89c2ab63e81dc8b9b5501e867cf6"
URIS = f"""\
'http://deb.example/pool/z/zlib1g_1%3a1.3.dfsg+really1.3.1-1+b1_amd64.deb' zlib1g_1%3a1.3.dfsg+really1.3.1-1+b1_amd64.deb 88920 SHA256:{SHA256}
'http://deb.example/pool/a/adduser_3.134_all.deb' adduser_3.134_all.deb 183444 SHA256:{SHA256[::-1]}
"""


def test_an_answer_of_apt_is_read_with_epochs_unquoted_and_sorted() -> None:
    assert packages.parse_uris(URIS) == [
        Package("adduser", "3.134", 183444, SHA256[::-1]),
        Package("zlib1g", "1:1.3.dfsg+really1.3.1-1+b1", 88920, SHA256),
    ]


def test_a_package_without_a_strong_hash_is_none() -> None:
    assert packages.parse_uris(URIS.replace("SHA256:", "MD5Sum:")) == []


def test_the_mirrors_are_the_hosts_own_and_debians_where_it_has_none() -> None:
    assert packages.parse_mirrors("") == packages.MIRRORS
    found = packages.parse_mirrors(
        "http://mirror.example/sub/debian/\nhttps://packages.example/cloud/\nhttp://other.example/debian\n"
    )
    assert found == {**packages.MIRRORS, "debian": "http://mirror.example/sub/debian"}


def test_security_updates_come_from_their_own_mirror_and_all_is_verified() -> None:
    mirrors = {"debian": "http://a/debian", "debian-security": "http://b/debian-security"}
    text = packages.format_sources(["trixie", "trixie-security"], mirrors)
    assert text == (
        f"deb [arch=amd64 signed-by={packages.KEYRING}] http://a/debian trixie main\n"
        f"deb [arch=amd64 signed-by={packages.KEYRING}] http://b/debian-security trixie-security main\n"
    )


def test_the_hosts_transport_is_inherited_and_nothing_else_of_it() -> None:
    transport = ['Acquire::http::Proxy "http://proxy:3128";', 'Acquire::Check-Valid-Until "false";']
    others = [
        'APT::Update::Post-Invoke:: "rm -f /var/cache/apt/archives/*.deb";',
        'DPkg::Pre-Install-Pkgs:: "/usr/sbin/dpkg-preconfigure --apt || true";',
        'Acquire::Languages:: "de";',
        'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "true";',
        'Dir::State "/var/lib/apt";',
    ]
    text = packages.format_settings(Path("/c"), "\n".join([*transport, *others]))
    lines = text.splitlines()
    assert lines[:2] == transport
    assert not set(others) & set(lines)


def test_no_check_is_turned_off_that_the_host_has_on() -> None:
    text = packages.format_settings(Path("/c"), "")
    assert "Acquire" in text
    assert not [line for line in text.splitlines() if "Check" in line or "Allow" in line or "trusted" in line]


def test_a_host_without_debians_keys_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "KEYRING", tmp_path / "none.gpg")
    with pytest.raises(VmError, match="cannot be verified") as caught:
        Archive.open(Cache(tmp_path), "one", ["trixie"])
    assert caught.value.hint == "install the package debian-archive-keyring"


def test_registries_are_reached_as_the_shell_reaches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "PIP_CERT", "LD_PRELOAD", "APT_CONFIG"):
        monkeypatch.setenv(name, "x")
    passed_on = packages.network_environment()
    assert {"https_proxy", "PIP_CERT"} <= set(passed_on)
    assert not {"LD_PRELOAD", "APT_CONFIG", "PATH"} & set(passed_on)

"""The pages under docs/ hold together: links lead somewhere, tables agree with what they describe."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = sorted(
    path
    for folder in ("btrsync", "harness", "tests", "tools", "vmimages")
    for path in (ROOT / folder).rglob("*.py")
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def read(page: str) -> str:
    return (ROOT / page).read_text()


# ------------------------------------------------------------------------------------------ links


def anchors(text: str) -> set[str]:
    """Return the anchors that a page's headings make, as GitHub forms them."""
    headings = re.findall(r"(?m)^#+ +(.*)$", FENCED.sub("", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Return the relative links of a page that lead nowhere. Links to other sites are not followed."""
    broken = []
    for link in LINK.findall(FENCED.sub("", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        file = page if not path else (page.parent / path).resolve()
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page, page.read_text()) == []


def test_a_link_that_leads_nowhere_is_seen() -> None:
    planted = (
        "# One\n[a](docs/nowhere.md) [b](#one) [c](#two) [d](README.md#no-such) [e](https://example.org/x)"
    )
    file = ROOT / "planted.md"
    assert [link for link in broken_links(file, planted) if not link.startswith("#")] == [
        "docs/nowhere.md",
        "README.md#no-such",
    ]
    assert anchors(planted) == {"one"}


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        links = [link.partition("#")[0] for link in LINK.findall(FENCED.sub("", page.read_text()))]
        waiting += [(page.parent / link).resolve() for link in links if link and ":" not in link]
    assert set(PAGES) - reached - {ROOT / "README.ja.md"} == set()


# --------------------------------------------------------------------------------------- glossary


def forbidden_words(glossary: str) -> set[str]:
    """Return the words in bold, which have no other honest use."""
    return set(re.findall(r"\*\*([a-z_]+)\*\*", glossary))


def names_defined(tree: ast.AST) -> set[str]:
    """Return the names that a module gives to its own things; what others named is not ours to judge."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case (
                ast.arg(arg=name)
                | ast.Name(id=name, ctx=ast.Store())
                | ast.Attribute(attr=name, ctx=ast.Store())
            ):
                names.add(name)
            case _:
                pass
    return names


def words_of(name: str) -> set[str]:
    """Return a name's words: LoopDevice and loop_device are loop and device; the whole name counts too."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().strip("_")
    return {parts, *parts.split("_")}


def offences(names: set[str], forbidden: set[str]) -> set[str]:
    """Return the names that use a forbidden word; the kernel's own constants are spelled as it does."""
    return {
        name for name in names if words_of(name) & forbidden and not name.strip("_").startswith("BTRFS_IOC_")
    }


def test_no_name_uses_a_word_that_the_glossary_forbids() -> None:
    forbidden = forbidden_words(read("docs/glossary.md"))
    found = {}
    for file in CODE:
        names = names_defined(ast.parse(file.read_text())) | {file.stem}
        if bad := offences(names, forbidden):
            found[str(file.relative_to(ROOT))] = bad
    assert found == {}


@pytest.mark.parametrize(
    "name", ["destroy_backup", "Dataset", "temp", "list_utils", "remote_id", "masterHost"]
)
def test_a_forbidden_word_is_seen_in_a_name(name: str) -> None:
    planted = names_defined(
        ast.parse(f"class A:\n    def f(self, {name}: int) -> None:\n        self.{name} = 1\n")
    )
    assert offences(planted, forbidden_words(read("docs/glossary.md"))) == {name}


@pytest.mark.parametrize("name", ["subvolume", "tempfile", "tmp_path", "attempt", "encrypted", "Inbox"])
def test_an_honest_name_passes(name: str) -> None:
    assert offences({name}, forbidden_words(read("docs/glossary.md"))) == set()


# ----------------------------------------------------------------------------------- dependencies


def declared() -> dict[str, set[str]]:
    """Return the packages that pyproject.toml asks for, by section of the page."""
    project = tomllib.loads(read("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]

    def names(requirements: list[str]) -> set[str]:
        found = {re.match(r"[A-Za-z0-9._-]+", word).group() for word in requirements}  # type: ignore[union-attr]
        return found - {project["name"]}

    return {
        "Of btrsync itself": names(project["dependencies"]),
        "Of the harness and the tests": names(extras["harness"] + extras["test"] + extras["fuzz"]),
        "Of the checks": names(extras["lint"] + extras["dev"]),
    }


def documented(page: str) -> dict[str, set[str]]:
    """Return the packages of each table, and only those that have a reason beside them."""
    sections = re.split(r"(?m)^## ", page)[1:]
    tables = {
        section.partition("\n")[0]: set(re.findall(r"(?m)^\| ([a-z][\w-]*) \| (?=\S.{20})", section))
        - {"package"}
        for section in sections
    }
    return {heading: table for heading, table in tables.items() if table}


def test_each_dependency_has_its_reason_and_no_reason_lost_its_dependency() -> None:
    assert documented(read("docs/dependencies.md")) == declared()


def test_a_dependency_without_a_reason_is_seen() -> None:
    page = read("docs/dependencies.md")
    assert documented(re.sub(r"(?m)^\| pyroute2 .*$", "| pyroute2 | needed |", page)) != declared()
    assert documented(re.sub(r"(?m)^\| click .*\n", "", page)) != declared()


def test_each_dependency_is_pinned_for_the_checks() -> None:
    pinned = set(re.findall(r"(?m)^([\w.-]+)==\S+$", read("constraints.txt")))
    assert {name.lower() for names in declared().values() for name in names} - {
        name.lower() for name in pinned
    } == set()


def test_each_debian_package_has_its_reason() -> None:
    lines = [line for line in read("packages.txt").splitlines() if line and not line.startswith("#")]
    assert lines == sorted(lines)
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+ +# .{3,}", line)] == []

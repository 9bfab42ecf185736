"""What README.md, the pages of docs and the other documents promise, as far as a test can check it."""

import json
import re
import shlex
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml

from fedmutual.config import RunConfig
from simulations.cli.app import app

ROOT = Path(__file__).parent.parent
README, INDEX = ROOT / "README.md", ROOT / "docs/README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PRESETS = ROOT / "simulations/presets"

COMMANDS = {**typer.main.get_command(app).commands}
SETTINGS = set(RunConfig().settings())
OWN_DATA = ("my-images", "shapes")
"""Folders of images that commands of the pages name."""

MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def code(page: Path) -> list[str]:
    """The lines of a page's code blocks, continued lines joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def commands(page: Path, program: str) -> list[list[str]]:
    """The words of every call of `program` in the code blocks of a page."""
    calls = [line for line in code(page) if line.startswith(f"{program} ")]
    return [shlex.split(line, comments=True) for line in calls]


def links(page: Path) -> list[str]:
    """The places that a page links to, pictures too, without web addresses."""
    places = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [place for place in places if not re.match(r"[a-z]+:", place)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by GitHub's rule: a repeated one is numbered."""
    seen: Counter[str] = Counter()
    result = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        result.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return result


def target(page: Path, place: str) -> Path:
    path = place.partition("#")[0]
    return (page.parent / path).resolve() if path else page


@every_page
def test_links_exist(page):
    missing = [place for place in links(page) if not target(page, place).exists()]
    assert missing == []


@every_page
def test_anchors_exist(page):
    with_anchor = [place for place in links(page) if "#" in place]
    missing = [place for place in with_anchor if place.partition("#")[2] not in anchors(target(page, place))]
    assert missing == []


@every_page
def test_named_files_exist(page):
    places = re.findall(r"`((?:fedmutual|client|server|simulations|tests|docs)/[\w./-]*)`", page.read_text())
    missing = [place for place in places if not (ROOT / place).exists()]
    assert missing == []


def test_the_map_shows_folders_that_exist():
    block = re.search(r"^fedmutual/ .*?(?=^```$)", README.read_text(), re.MULTILINE | re.DOTALL)
    parent, missing = "", []
    for line in block[0].splitlines():
        folder = line.split()[0]
        parent, place = ("", folder) if not line.startswith(" ") else (parent, parent + folder)
        parent = parent or folder
        missing += [place] if not (ROOT / place).is_dir() else []
    assert missing == []


@every_page
def test_commands_exist(page):
    assert {words[1] for words in commands(page, "fedmutual")} <= {*COMMANDS, "--help", "--install-completion"}
    assert {words[1] for words in commands(page, "make")} <= MAKE_TARGETS


@every_page
def test_commands_in_prose_exist(page):
    named = re.findall(r"`fedmutual ([a-z][a-z-]*)", prose(page))
    assert set(named) <= set(COMMANDS)
    assert set(re.findall(r"`make ([a-z-]+)", prose(page))) <= MAKE_TARGETS


@every_page
def test_flags_exist(page):
    for words in commands(page, "fedmutual"):
        if words[1] in COMMANDS:
            known = {name for option in COMMANDS[words[1]].params for name in (*option.opts, *option.secondary_opts)}
            assert {word for word in words[2:] if re.match(r"--?[a-z]", word)} <= known | {"--help"}, words


@every_page
def test_settings_exist(page):
    keys = []
    for words in commands(page, "fedmutual"):
        if words[1] != "game":  # which has settings of its own
            keys += [after.partition("=")[0] for before, after in pairwise(words) if before == "-s"]
    keys += re.findall(r"`-s ([a-z-]+)=", prose(page))
    assert {key.rpartition(".")[2] for key in keys} <= {*SETTINGS, "key"}  # `-s key=value` stands for any


@every_page
def test_presets_in_commands_exist(page):
    known = {path.stem for path in PRESETS.glob("*.toml")}
    for words in commands(page, "fedmutual"):
        if words[1] in ("simulate", "compare", "extractor", "doctor") and not words[2].startswith("-"):
            own = words[2] in OWN_DATA or words[2].endswith(".npz")
            assert own or words[2] in known or words[2].endswith(".toml"), words


def test_every_preset_is_named():
    docs = "".join(page.read_text() for page in PAGES if page.is_relative_to(ROOT / "docs"))
    assert [path.stem for path in PRESETS.glob("*.toml") if f"`{path.stem}`" not in docs] == []


def test_every_command_is_explained():
    docs = "".join(page.read_text() for page in PAGES)
    assert [name for name in COMMANDS if f"fedmutual {name}" not in docs] == []


def test_every_setting_is_listed_with_its_default():
    rows = set(re.findall(r"^\| `([\w-]+)` \| `(.*?)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE))
    assert rows == {(key, json.dumps(field.default)) for _, key, field in RunConfig.documented()}


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200


def test_every_picture_is_used():
    shown = {target(page, place) for page in PAGES for place in links(page)}
    assert [path for path in (ROOT / "docs/pictures").iterdir() if path.resolve() not in shown] == []


def test_every_page_is_reached_from_the_index():
    reached, todo = set(), [INDEX]
    while todo:
        page = todo.pop()
        if page not in reached:
            reached.add(page)
            todo += [path for place in links(page) if (path := target(page, place)).suffix == ".md" and path.exists()]
    assert [page for page in PAGES if page not in reached] == []


def test_the_citation_names_the_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == version
    assert citation["message"]
    assert citation["authors"]
    authors = [author["family-names"] for author in citation["references"][0]["authors"]]
    assert authors == ["Das", "Fu", "Hashemi", "Gupta"]

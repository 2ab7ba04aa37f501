"""The pages' numbers are those of the committed records, their examples run, and their links lead somewhere."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import igfast
from benchmarks import tables

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", tables.PAGES, ids=name_of)
def test_tables_are_those_of_the_records(page):
    text = page.read_text()
    assert "<!-- table: " in text
    assert tables.rendered(text) == text  # `python -m benchmarks.tables` renders them anew


def test_every_table_is_on_a_page():
    named = {name for page in tables.PAGES for name in re.findall(r"<!-- table: (\w+) -->", page.read_text())}
    assert named == set(tables.TABLES)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_examples_run(page, tmp_path):
    """All of a page, in a process of their own, in an empty folder."""
    examples = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    if not examples:
        pytest.skip("no examples")
    script = tmp_path / "examples.py"
    script.write_text("\n".join(examples))
    command = [sys.executable, "-W", "error", *IGNORED, str(script)]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr[-3000:]


# Of the packages that examples use, about themselves.
IGNORED = ("-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning", "-W", "ignore::ResourceWarning")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name_of)
def test_every_linked_file_exists(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("module", [igfast, igfast.viz, igfast.baselines], ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_api(module):
    api = (ROOT / "docs" / "api.md").read_text()
    for name, value in vars(module).items():
        if name.startswith("_") or inspect.ismodule(value):
            continue
        assert f"::: {module.__name__}.{name}\n" in api or value.__module__ == "igfast.errors", name
        assert isinstance(value, tuple) or inspect.getdoc(value), name

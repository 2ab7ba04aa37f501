"""The README's numbers are those of the committed records, and its examples run."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import tables

README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.parametrize("table", tables.TABLES)
def test_tables_are_those_of_the_records(table):
    assert "\n".join(table()) in README


def test_python_examples_run():
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) >= 2
    namespace = {"torch": torch}
    for example in examples:
        exec(example, namespace)


def test_every_linked_file_exists():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (Path(__file__).parent.parent / link).exists()] == []

"""The structure of igfast: imports go one way, no file does too much, no two files have nearly the same name."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "igfast").rglob("*.py"))
}
# From the top down: a package imports those after it, and itself.
ORDER = (
    *("cli", "alibi", "diagnosis", "viz", "baselines", "patching", "llm", "attr", "explanation", "run", "model"),
    *("request", "lean", "interrupts", "memory", "function_mode", "rng", "ops", "packages", "errors"),
)
BESIDE = {"alibi", "diagnosis", "viz", "baselines"}  # stand side by side: none imports another


def imports(path):
    """The modules of igfast that a file imports when it is loaded; not those that functions import."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module for name in whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name in MODULES}


GRAPH = {name: imports(path) for name, path in MODULES.items()}


def reachable(start):
    seen, waiting = set(), [start]
    while waiting:
        for name in GRAPH[waiting.pop()] - seen:
            seen.add(name)
            waiting.append(name)
    return seen


@pytest.mark.parametrize("name", [name for name in MODULES if name != "igfast"])
def test_no_module_imports_itself_by_way_of_others(name):
    assert name not in reachable(name)


def package(name):
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("name", [name for name in MODULES if package(name) in ORDER])
def test_imports_go_one_way(name):
    allowed = set(ORDER[ORDER.index(package(name)) :])
    imported = {package(other) for other in GRAPH[name] if other != "igfast"} - {"selecting"}
    assert imported <= allowed
    assert package(name) not in BESIDE or not imported & (BESIDE - {package(name)})


CSRC = [p for p in sorted((ROOT / "csrc").rglob("*")) if p.suffix in {".cpp", ".h", ".cu", ".cuh"}]
SOURCES = [*MODULES.values(), *CSRC]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400


def test_functions_are_short():
    lengths = []
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body:
                    lengths.append(body[-1].end_lineno - body[0].lineno + 1)
    lengths.sort()
    assert lengths[len(lengths) // 2] <= 6
    assert lengths[int(0.9 * len(lengths))] <= 25


def test_no_two_files_of_a_folder_differ_by_an_underscore_or_an_ending():
    for folder in {path.parent for path in MODULES.values()}:
        stems = [path.stem.strip("_").rstrip("s") for path in folder.glob("*.py")]
        assert len(stems) == len(set(stems)), folder

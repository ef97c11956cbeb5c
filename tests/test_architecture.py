"""The shape of the code: what may import what, what is confined to one place, and how large things may be."""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pyfuse3
import pytest

from tests.fakes import PROJECT

PACKAGE = PROJECT / "mailfs"
# Highest first: each imports only what stands below it.
LAYERS = ("cli", "fuse", "views", "ingest", "store", "search", "message", "errors", "ids")
MODULE_LINES = 600
FUNCTION_LINES = 60
VAGUE_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "misc"})

MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# Packages within a layer, and what may not import them: what stands beside them, and each those before it.
WITHIN_STORE = ("upkeep", "rescue")

# What only some layers may import.
CONFINED_IMPORTS = {
    "pyfuse3": {"fuse"},
    "trio": {"fuse"},
    "apsw": {"store"},
    "sqlite3": set[str](),
    "fcntl": {"store"},
    "xxhash": {"store", "message"},
    "zstandard": {"store"},
    "argparse": {"cli"},
    "tqdm": {"cli"},
}
# What `versions()` asks for when somebody wants to report a bug.
VERSION_IMPORTS = {("cli/mounting.py", "pyfuse3"), ("cli/mounting.py", "trio")}


@functools.cache
def tree_of(module: Path) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text("utf-8"), str(module))


def layer_of(module: Path) -> str:
    """`store` of store/lock.py and of errors.py `errors`; the package itself and __main__ are the top."""
    return module.parts[0].removesuffix(".py")


def imports_of(module: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported, anywhere in the module."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def functions_of(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def dotted(node: ast.expr) -> str:
    """`os.environ` of the expression; '' of anything that is no dotted name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def test_the_layers_are_those_that_are_there() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"}
    assert folders | files == set(LAYERS)


@pytest.mark.parametrize("module", [each for each in MODULES if each.parts[0] == "store"], ids=str)
def test_the_store_works_without_its_upkeep_and_both_without_rescue(module: Path) -> None:
    package = module.parts[1] if len(module.parts) > 2 else ""
    above = WITHIN_STORE[WITHIN_STORE.index(package) + 1 if package else 0 :]
    for line, name in imports_of(module):
        assert not name.startswith(tuple(f"mailfs.store.{each}." for each in above)), (line, name)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_go_down_only(module: Path) -> None:
    layer = layer_of(module)
    if layer not in LAYERS:
        return
    below = LAYERS[LAYERS.index(layer) :]
    wrong = [
        (line, name)
        for line, name in imports_of(module)
        if name.split(".")[0] == "mailfs"
        and name.split(".")[1] not in below
        and name != "mailfs.__version__"
    ]
    assert wrong == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_what_is_confined_is_imported_in_its_place_only(module: Path) -> None:
    wrong = []
    for line, name in imports_of(module):
        imported = name.split(".")[0]
        allowed = CONFINED_IMPORTS.get(imported, LAYERS)
        if layer_of(module) not in (*allowed, "__init__", "__main__"):
            wrong.append((line, imported))
    assert [each for each in wrong if (str(module), each[1]) not in VERSION_IMPORTS] == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_fuse_has_coroutines(module: Path) -> None:
    asynchronous = (ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await)
    found = [n.lineno for n in ast.walk(tree_of(module)) if isinstance(n, asynchronous)]
    assert found == [] or layer_of(module) == "fuse"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_only_the_command_line_reads_the_environment_and_its_arguments_and_prints(
    module: Path,
) -> None:
    if layer_of(module) == "cli":
        return
    theirs = {
        *("os.environ", "os.environb", "os.getenv", "os.putenv", "sys.argv"),
        *("sys.stdin", "sys.stdout", "sys.stderr", "print", "input"),
    }
    found = [
        (node.lineno, dotted(node))
        for node in ast.walk(tree_of(module))
        if isinstance(node, (ast.Attribute, ast.Name)) and dotted(node) in theirs
    ]
    taken = [(line, name) for line, name in imports_of(module) if name in theirs and "." in name]
    assert found + taken == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_and_functions_fit_the_head(module: Path) -> None:
    lines = (PACKAGE / module).read_text("utf-8").count("\n")
    assert lines <= MODULE_LINES
    long = {
        node.name: 1 + (node.end_lineno or 0) - node.lineno
        for node in functions_of(tree_of(module))
        if 1 + (node.end_lineno or 0) - node.lineno > FUNCTION_LINES
    }
    assert long == {}


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert [module for module in MODULES if VAGUE_NAMES & {module.stem, *module.parts}] == []


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_says_what_it_owns(module: Path) -> None:
    assert ast.get_docstring(tree_of(module))


def undocumented(
    body: list[ast.stmt], prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Public functions and classes without a docstring, methods included."""
    for node in body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        if node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"{prefix}{node.name}", node
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, f"{node.name}.")


def protocol_methods() -> set[str]:
    """Methods documented where they are asked for: in a Protocol of ours, or in pyfuse3's Operations."""
    names = set()
    for module in MODULES:
        for node in ast.walk(tree_of(module)):
            if isinstance(node, ast.ClassDef) and "Protocol" in map(dotted, node.bases):
                names |= {method.name for method in functions_of(node)}
    return names | {name for name in vars(pyfuse3.Operations) if not name.startswith("_")}


DOCUMENTED = [
    module for module in MODULES if layer_of(module) in ("store", "views", "fuse", "errors")
]


@pytest.mark.parametrize("module", DOCUMENTED, ids=str)
def test_what_is_public_says_what_it_does_or_is_three_lines_long(module: Path) -> None:
    elsewhere = protocol_methods()
    missing = []
    for name, node in undocumented(tree_of(module).body):
        lines = (node.end_lineno or 0) - node.body[0].lineno + 1
        if lines > 3 and node.name not in elsewhere:
            missing.append(name)
    assert missing == []

"""The package stays small, its imports run one way, and the rooms hand on names that exist."""

import ast
import importlib
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "recr1_lite"
MODULES = sorted(PACKAGE.rglob("*.py"))
# an import goes to the same floor or to one further down
ROOMS = ("deploy", "recipes", "report", "train", "evaluate", "policy", "search", "tasks", "assets")
FLOORS = ("__main__", "doctor", *ROOMS, "ledger", "profiles", "common")
UNSLOTH_FIRST = {"recr1_lite.policy.backend"}  # what the package itself imports, before anything loads transformers


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, at its top or inside a function."""
    names, known = set(), {name_of(module) for module in MODULES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return (names & known) - {"recr1_lite", name_of(path)}


def room_of(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def test_no_import_circle():
    graph = {name_of(path): imports_of(path) for path in MODULES if path.name != "__init__.py"}
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_down(path):
    here = room_of(name_of(path))
    below = FLOORS[FLOORS.index(here) :] if here in FLOORS else ()
    allowed = UNSLOTH_FIRST if here == "__init__" else set()
    upward = {name for name in imports_of(path) - allowed if room_of(name) not in below}
    assert not upward, f"{name_of(path)} imports {sorted(upward)}, which stand above it"


def test_size():
    """Who adds lines takes others away: the marks only fall."""
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    modules = [path for path in MODULES if path.name != "__init__.py"]
    assert len(modules) <= 45 and sum(lines.values()) <= 12_140
    assert max(lines.values()) <= 400, max(lines, key=lines.get)


@pytest.mark.parametrize("room", [path.parent.name for path in MODULES if path.name == "__init__.py"])
def test_rooms_hand_on_what_exists(room):
    module = importlib.import_module("recr1_lite" if room == "recr1_lite" else f"recr1_lite.{room}")
    for name in getattr(module, "__all__", ()):
        assert getattr(module, name) is not None


def test_rooms_open_without_torch():
    rooms = f"from recr1_lite import {', '.join(ROOMS)}; from recr1_lite.deploy import scale"  # the search server
    code = f"import sys; {rooms}; sys.exit('torch' in sys.modules)"
    plain = os.environ | {"RECR1_BACKEND": "transformers"}  # unsloth would look for its GPU with torch
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, env=plain).returncode == 0

"""How the modules hang together."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from sealpoint import checkpoint

SOURCE = Path(__file__).resolve().parent.parent / "src"


def test_no_modules_import_each_other_in_a_circle():
    """Imports within functions and those for types alone count, too."""
    from graphlib import TopologicalSorter  # raises CycleError, which names the circle

    trees = {}
    for path in SOURCE.rglob("*.py"):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        trees[name] = ast.parse(path.read_text())
    arrows = {name: set() for name in trees}
    for importer, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in trees:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    arrows[importer].add(inner if inner in trees else node.module)
            elif isinstance(node, ast.Import):
                arrows[importer].update(a.name for a in node.names if a.name in trees)
    assert arrows["sealpoint"] == {"sealpoint.api", "sealpoint.version"}  # it does look
    TopologicalSorter(arrows).prepare()


def test_the_face_of_checkpoint_has_what_it_promises():
    tree = ast.parse((SOURCE / "sealpoint/checkpoint/__init__.py").read_text())
    declared = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sealpoint.")
        for alias in node.names
    }
    assert declared == set(checkpoint.__all__)  # what the types say is what a run gets
    assert [name for name in checkpoint.__all__ if getattr(checkpoint, name, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        checkpoint.nothing  # noqa: B018


def test_the_face_of_checkpoint_loads_no_room_before_it_is_asked():
    code = "import sys, sealpoint.checkpoint; print(*(m for m in sys.modules if m.startswith('sealpoint')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"sealpoint", "sealpoint.version", "sealpoint.checkpoint"}


def test_a_class_name_is_there_once():
    """Private ones may repeat, and what the public API calls its own is behind its face."""
    found = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    assert {name: paths for name, paths in found.items() if len(paths) > 1} == {}

"""How the modules hang together."""

from __future__ import annotations

import ast
from pathlib import Path

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

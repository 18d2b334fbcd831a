"""structure.py [--traces]: figures of how the modules hang together; docs/adr/0062 has those of before and after.

From the source: imports that enter `checkpoint` from outside, and through which module; modules that build a sealer,
join what lies beside a file, require trust; functions over 80 lines; import circles; class names that are there twice.
Imports within functions and those for types alone count, too.  With --traces, also from a run: the modules of which
functions are called on the way of a page into a sealed file and back, and of a key from its option to the opened file.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

SOURCE = Path(__file__).resolve().parent.parent / "src"
ROOM = "sealpoint.checkpoint"
LONG = 80  # lines of a function


class Import(NamedTuple):
    """One name that a module takes from another; "" is the module itself."""

    importer: str
    module: str
    name: str


class Code:
    """All modules of the package, parsed."""

    def __init__(self, source: Path = SOURCE) -> None:
        self.trees: dict[str, ast.Module] = {}
        for path in sorted(source.rglob("*.py")):
            parts = path.relative_to(source).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.trees[name] = ast.parse(path.read_text(), str(path))
        self.imports = [found for name in self.trees for found in self._imports(name)]

    def _imports(self, importer: str) -> Iterator[Import]:
        for node in ast.walk(self.trees[importer]):
            if isinstance(node, ast.ImportFrom) and node.module in self.trees:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    if inner in self.trees:
                        yield Import(importer, inner, "")
                    else:
                        yield Import(importer, node.module, alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name in self.trees:
                        yield Import(importer, alias.name, "")

    def circles(self) -> list[list[str]]:
        """Groups of modules that import each other (Tarjan's strongly connected components)."""
        arrows: dict[str, set[str]] = defaultdict(set)
        for found in self.imports:
            arrows[found.importer].add(found.module)
        number: dict[str, int] = {}
        low: dict[str, int] = {}
        stack: list[str] = []
        circles = []

        def visit(module: str) -> None:
            number[module] = low[module] = len(number)
            stack.append(module)
            for other in arrows[module]:
                if other not in number:
                    visit(other)
                    low[module] = min(low[module], low[other])
                elif other in stack:
                    low[module] = min(low[module], number[other])
            if low[module] == number[module]:
                at = stack.index(module)
                circle = stack[at:]
                del stack[at:]
                if len(circle) > 1 or module in arrows[module]:
                    circles.append(sorted(circle))

        sys.setrecursionlimit(10_000)
        for module in self.trees:
            if module not in number:
                visit(module)
        return circles

    def entries(self, room: str = ROOM) -> list[Import]:
        """What modules outside of a package import from inside of it."""
        return [
            found
            for found in self.imports
            if _within(found.module, room) and not _within(found.importer, room)
        ]

    def functions(self) -> Iterator[tuple[str, str, int]]:
        """Module, name and lines of each function."""
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    yield module, node.name, (node.end_lineno or 0) - node.lineno + 1

    def repeated_classes(self) -> dict[str, list[str]]:
        """Class names that more than one module defines."""
        found: dict[str, list[str]] = defaultdict(list)
        for module, tree in self.trees.items():
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    found[node.name].append(module)
        return {name: modules for name, modules in sorted(found.items()) if len(modules) > 1}

    def repeated_steps(self) -> dict[str, list[str]]:
        """Modules with the three steps that every caller would otherwise repeat."""
        return {
            "build a sealer": self._callers("CheckpointBuilder"),
            "join what lies beside a file": self._callers("separate_pages.join"),
            "require trust of a policy": self._callers("require_trust"),
        }

    def _callers(self, *names: str) -> list[str]:
        return [
            module
            for module, tree in self.trees.items()
            if any(isinstance(n, ast.Call) and _called(n.func) in names for n in ast.walk(tree))
        ]


def _within(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def _called(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


class Trace:
    """Which modules of the project run between two calls, in all threads.

    first, last: qualified names of functions; from the call of the one to the return of the other.
    """

    def __init__(self, first: str, last: str) -> None:
        self.seen: set[str] = set()
        self._first, self._last, self._on, self._done = first, last, False, False

    def _look(self, frame: Any, event: str, _argument: Any) -> None:
        module = frame.f_globals.get("__name__", "")
        if self._done or event not in ("call", "return") or not module.startswith("sealpoint."):
            return
        name = frame.f_code.co_qualname
        self._on = self._on or (event == "call" and name == self._first)
        if self._on:
            self.seen.add(module)
            self._done = event == "return" and name == self._last

    def __enter__(self) -> Self:
        threading.setprofile(self._look)
        sys.setprofile(self._look)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        if not self._done:
            sys.exit(f"structure.py: from {self._first} to {self._last}: that way was not gone")


def traces() -> dict[str, set[str]]:
    """Modules by walk: a small checkpoint is sealed and opened."""
    import sealpoint
    from sealpoint.cli.app import run

    found = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        os.environ["XDG_CONFIG_HOME"] = name
        images = directory / "images"
        images.mkdir()
        pages = os.urandom(1 << 25)  # enough that threads write while others still read
        (images / "pages-1.img").write_bytes(pages)
        _command(run, "keygen", str(directory / "keys"))
        _command(run, "keygen", "--signer", str(directory / "keys"))
        identity, sealed = str(directory / "keys/identity.key"), str(directory / "sealed")
        trust = str(directory / "keys/signer.pub")
        sealing = sealpoint.Sealing(
            recipients=[str(directory / "keys/recipient.pub")],
            signer=str(directory / "keys/signer.key"),
        )
        with Trace("CheckpointBuilder.large", "LargeObject.finish") as trace:
            sealpoint.seal(str(images), sealed, sealing, as_files=True)
        found["a page into the file"] = trace.seen
        arguments = {"trust": [trust], "identities": [identity]}
        with sealpoint.Checkpoint.open(sealed, **arguments) as checkpoint:
            image = checkpoint.images["pages-1.img"]
            with Trace("ImageData.read", "ImageData.read") as trace:
                assert image.read() == pages
        found["a page back"] = trace.seen
        with Trace("load_identities", "OpenFile.unlock") as trace:
            _command(run, "open", sealed, "-i", identity, "--trust", trust, "-o", name + "/out")
        found["a key from option to unwrap"] = trace.seen
    return found


def _command(run: Callable[[list[str]], int], *arguments: str) -> None:
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        code = run(list(arguments))
    if code:
        sys.exit(f"structure.py: {' '.join(arguments)} ended with {code}")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(usage=__doc__.partition(":")[0])
    parser.add_argument("--traces", action="store_true")
    wanted = parser.parse_args()
    code = Code()
    entries = code.entries()
    print("modules:", len(code.trees))
    print("imports into checkpoint from outside:", len({e[:2] for e in entries}))
    print("  of modules:", len({e.module for e in entries}))
    print("  of names:", len({e[1:] for e in entries}))
    for what, places in code.repeated_steps().items():
        print(f"modules that {what}: {len(places)}: {', '.join(places)}")
    long = [f"{m}.{name} {size}" for m, name, size in code.functions() if size > LONG]
    print(f"functions over {LONG} lines: {len(long)}:", ", ".join(sorted(long)))
    print("import circles:", len(code.circles()))
    repeated = code.repeated_classes()
    print(f"class names that are there more than once: {len(repeated)}:", ", ".join(repeated))
    if wanted.traces:
        for what, modules in traces().items():
            print(f"modules on the way of {what}: {len(modules)}: {', '.join(sorted(modules))}")


if __name__ == "__main__":
    main()

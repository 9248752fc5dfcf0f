"""Who imports whom in `src/vidpipe` and `pipeline`, read from the files themselves.

Counted are all imports: late ones inside functions, those for type checkers only, and modules that a
string names (`import_module`).
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

Imports = Mapping[str, set[str]]
"""Module -> what it imports, as dotted names; a package's own file is `package.__init__`."""


def files(*roots: tuple[Path, str]) -> dict[str, Path]:
    """Module -> file, for packages given as (folder that holds it, name)."""
    return {
        ".".join(file.relative_to(root).with_suffix("").parts): file
        for root, package in roots
        for file in sorted((root / package).rglob("*.py"))
    }


def named(source: str, module: str) -> Iterator[tuple[str, str]]:
    """(module, name in it or "") of each import in `source`, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from ((base, alias.name) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            yield node.value, ""


def outside(source: str) -> set[str]:
    """Top-level names of what `source` imports."""
    tree = ast.parse(source)
    statements = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    return {name.split(".")[0] for node in statements for name, _ in named(ast.unparse(node), "")}


def graph(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Module -> source, to module -> modules of the same set that it imports."""

    def find(base: str, name: str) -> str | None:
        candidates = (f"{base}.{name}", f"{base}.{name}.__init__", base, f"{base}.__init__")
        return next((c for c in candidates if c in modules), None)

    found: dict[str, set[str]] = {}
    for module, source in modules.items():
        targets = {find(*pair) for pair in named(source, module)}
        found[module] = {target for target in targets if target is not None} - {module}
    return found


def circles(imports: Imports) -> dict[str, list[str]]:
    """Folder -> a circle among its files and folders; folders without one are left out.

    Two files of the same folder, a file and a folder beside it, and two folders are all rooms of the
    folder that holds both: where no folder has a circle among its rooms, there is none at all.
    """
    rooms: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for module, targets in imports.items():
        for target in targets:
            own, other = module.split("."), target.split(".")
            depth = next(i for i, (a, b) in enumerate(zip(own, other)) if a != b)
            rooms[".".join(own[:depth])][own[depth]].add(other[depth])
    found = {}
    for folder, edges in rooms.items():
        try:
            TopologicalSorter(edges).prepare()
        except CycleError as error:
            found[folder] = error.args[1][::-1]
    return found

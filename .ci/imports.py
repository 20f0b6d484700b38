#!/usr/bin/env python3
"""Draw which room of the package imports which, and count arrows, circles and upward arrows.

    python .ci/imports.py [COMMIT ...]

A room is a module or a package right below fmnist_lab. An arrow stands for at least one import
of a module in one room by a module in another, also within a function or under TYPE_CHECKING.
With the layers of pyproject.toml, an arrow is upward that leads to a layer above or to another room
of its own; of a commit that has none, those arrows are counted that have to go until no circle is
left. Without a commit, the files are read as they are.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections import Counter
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "fmnist_lab"


def graph_at(commit: str) -> tuple[grimp.ImportGraph, list[set[str]]]:
    """Return all imports of the package, and its layers, the uppermost first.

    Args:
        commit: Whatever git takes for a commit; "": the files as they are.
    """
    folder = ROOT
    with tempfile.TemporaryDirectory() as temporary:
        if commit:
            folder = Path(temporary)
            packed = subprocess.run(
                ["git", "-C", ROOT, "archive", commit, PACKAGE, "pyproject.toml"],
                check=True,
                capture_output=True,
            )
            with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                archive.extractall(folder, filter="data")
        sys.path.insert(0, str(folder))
        try:
            graph = grimp.build_graph(PACKAGE, cache_dir=None)
        finally:
            del sys.path[0]
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"].get("importlinter", {}).get("contracts", [])
    layers = next((each["layers"] for each in contracts if each["type"] == "layers"), [])
    return graph, [{name.strip(" ()") for name in layer.split("|")} for layer in layers]


def rooms_of(graph: grimp.ImportGraph) -> grimp.ImportGraph:
    """Return the graph with one node for each room, and none for the package itself."""
    rooms = grimp.ImportGraph()
    for room in graph.find_children(PACKAGE):
        rooms.add_module(short(room))
    for importer, imported in arrows_of(graph):
        pair = room_of(importer), room_of(imported)
        if pair[0] != pair[1] and PACKAGE not in pair:
            rooms.add_import(importer=pair[0], imported=pair[1])
    return rooms


def short(module: str) -> str:
    """Return a module's name without the package's."""
    return module.removeprefix(f"{PACKAGE}.")


def room_of(module: str) -> str:
    """Return the room of a module."""
    return short(module).partition(".")[0]


def arrows_of(graph: grimp.ImportGraph) -> list[tuple[str, str]]:
    """Return the importer and the imported module of each import."""
    return sorted(
        (importer, imported)
        for importer in graph.modules
        for imported in graph.find_modules_directly_imported_by(importer)
    )


def circles_of(graph: grimp.ImportGraph) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or by way of others."""
    below = {each: reached(graph, each) for each in graph.modules}
    groups = {frozenset(b for b in below[a] if a in below[b]) for a in below if a in below[a]}
    return sorted((sorted(group) for group in groups), key=lambda group: (-len(group), group))


def reached(graph: grimp.ImportGraph, start: str) -> set[str]:
    """Return all modules that a module imports, directly or by way of others."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph.find_modules_directly_imported_by(waiting.pop()) - found
        found |= new
        waiting += new
    return found


def floors_of(graph: grimp.ImportGraph) -> dict[str, int]:
    """Return each room's floor: 1 if it imports none, else one above the highest it imports.

    The rooms of a circle share a floor.
    """
    circle = {room: group for group in circles_of(graph) for room in group}
    floors: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in floors:
            group = circle.get(room, [room])
            below = {b for a in group for b in graph.find_modules_directly_imported_by(a)}
            floors.update(
                dict.fromkeys(group, 1 + max((floor(b) for b in below - {*group}), default=0))
            )
        return floors[room]

    for room in graph.modules:
        floor(room)
    return floors


def upward(rooms: grimp.ImportGraph, layers: list[set[str]]) -> set[tuple[str, str]]:
    """Return the arrows between rooms that lead up, or else those that close circles."""
    if layers:
        depth = {room: number for number, layer in enumerate(layers) for room in layer}
        return {(a, b) for a, b in arrows_of(rooms) if depth.get(b, 0) <= depth.get(a, 0)}
    kept = grimp.ImportGraph()
    for a, b in arrows_of(rooms):
        kept.add_import(importer=f"all.{a}", imported=f"all.{b}")
    kept.add_module("all")
    breakers = kept.nominate_cycle_breakers("all")
    return {(a.removeprefix("all."), b.removeprefix("all.")) for a, b in breakers}


def describe(commit: str) -> str:
    """Return the drawing and the figures of one commit."""
    graph, layers = graph_at(commit)
    rooms = rooms_of(graph)
    floors, circles, up = floors_of(rooms), circles_of(rooms), upward(rooms, layers)
    count = Counter(
        (room_of(importer), room_of(imported)) for importer, imported in arrows_of(graph)
    )
    lines = [
        f"{PACKAGE} at {commit or 'the working tree'}: {len(rooms.modules)} rooms on "
        f"{max(floors.values())} floors, {len(arrows_of(rooms))} arrows between rooms, "
        f"{len(circles)} circles, {len(up)} upward arrows",
        f"modules: {len(graph.modules)}, {len(arrows_of(graph))} arrows, "
        f"{len(circles_of(graph))} circles",
        "",
    ]
    for room in sorted(rooms.modules, key=lambda room: (-floors[room], room)):
        below = sorted(rooms.find_modules_directly_imported_by(room))
        marked = (f"{b} {count[room, b]}{' (up)' if (room, b) in up else ''}" for b in below)
        lines.append(f"{floors[room]:>3}  {room:<12} -> {', '.join(marked) or 'none'}")
    lines += ["", *(f"circle of rooms: {', '.join(group)}" for group in circles)]
    for group in circles_of(graph):
        lines.append(f"circle of modules: {', '.join(map(short, group))}")
    for a, b in sorted(up):
        which = [
            f"{short(x)} -> {short(y)}"
            for x, y in arrows_of(graph)
            if (room_of(x), room_of(y)) == (a, b)
        ]
        lines.append(f"up: {'; '.join(which)}")
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    print("\n\n".join(describe(commit) for commit in sys.argv[1:] or [""]))

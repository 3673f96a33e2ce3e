"""Draws the rooms of the repository and their imports in layers: `python -m paper_figures.architecture` writes docs/architecture.svg.

A room is a sub-package of repro, or one of the packages baselines and paper_figures. The single modules of repro that import no room
form the room `repro`; each of the others, such as `grid.py`, is a room of its own. The entry point `repro/__main__.py` is left out.
"""

import ast
import io
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from scipy.interpolate import CubicHermiteSpline

from paper_figures.house_style import house_style
from repro.files.writing import write_atomically

ROOT = Path(__file__).resolve().parents[1]
TITLE = "The rooms of the repository; an arrow leads from a room to one that it imports"
PACKAGES = ("repro", "baselines", "paper_figures")
Graph = Mapping[str, Collection[str]]

SWEEPS = 12
COLUMN, LAYER = 1.6, 0.68  # inches
HALF_WIDTH, HALF_HEIGHT, HEAD = 0.42, 0.27, 0.05  # of a box, in columns and layers; half the height of an arrow's head
INK, LINE, FILL = "#1b2733", "#6b8cab", "#e8f0f7"  # on paper of any colour: a page may be light or dark


def edges(root: Path) -> dict[str, set[str]]:
    """Returns for every room the other rooms that its modules import.

    Args:
        root: The folder that holds the packages.
    """
    modules = _imports(root)
    base = {name for name in modules if name.count(".") < 2 and name.startswith("repro") and not (root / name.replace(".", "/")).is_dir()}
    base.add("repro")
    while outside := {name for name in base if not modules[name] <= base}:
        base -= outside
    found: dict[str, set[str]] = {}
    for name, imported in modules.items():
        room = _room(name, base, root)
        found.setdefault(room, set()).update({_room(other, base, root) for other in imported} - {room})
    return found


def _room(name: str, base: Collection[str], root: Path) -> str:
    """Returns the room of a module, such as `files` for repro.files.locks and `grid.py` for repro.grid."""
    package, _, inner = name.partition(".")
    if name in base or package != "repro":
        return package
    first = inner.partition(".")[0]
    return first if (root / package / first).is_dir() else f"{first}.py"


def _imports(root: Path) -> dict[str, set[str]]:
    """Returns for every module the modules of the three packages that it imports, inside functions too."""
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    modules = {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    modules.pop("repro.__main__", None)
    return {name: set(_imported(path, modules)) for name, path in modules.items()}


def _imported(path: Path, modules: Collection[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and (package := node.module) and package in modules:
            names = (f"{package}.{alias.name}" for alias in node.names)
            yield from (name if name in modules else package for name in names)


def reached(graph: Graph) -> dict[str, set[str]]:
    """Returns for every room all rooms that it depends on, directly or not."""
    found = {room: set(others) for room, others in graph.items()}
    for middle in graph:
        for room in graph:
            if middle in found[room]:
                found[room] |= found[middle]
    return found


def reduced(graph: Graph) -> dict[str, set[str]]:
    """Returns the graph without the edges that a longer path implies; edges of a cycle stay."""
    below = reached(graph)

    def implied(room: str, end: str) -> bool:
        others = (via for via in graph[room] if via != end and room not in below[via] and via not in below[end])
        return any(end in below[via] for via in others)

    return {room: {end for end in ends if not implied(room, end)} for room, ends in graph.items()}


def levels(graph: Graph) -> dict[str, int]:
    """Returns the layer of every room, 0 at the bottom: one above the highest that it depends on; a cycle shares a layer."""
    below, found = reached(graph), dict.fromkeys(graph, 0)
    for room in sorted(graph, key=lambda room: (len(below[room]), room)):
        found[room] = max((found[other] + 1 for other in below[room] if room not in below[other]), default=0)
    return found


Point = tuple[float, float]


def layout(graph: Graph) -> tuple[dict[str, Point], dict[tuple[str, str], list[Point]]]:
    """Places rooms in their layers; an edge over several layers has a waypoint in each of them, so that it passes beside the boxes.

    Returns:
        The middle of every room, and the points of every edge from its upper room on: columns from the middle, layers from the bottom.
    """
    level = levels(graph)
    layers = [sorted(room for room in graph if level[room] == number) for number in range(max(level.values()) + 1)]
    neighbours: dict[str, list[str]] = {room: [] for room in graph}
    chains: dict[tuple[str, str], list[str]] = {}
    for upper, lower in sorted((room, end) for room, ends in graph.items() for end in ends):
        waypoints = {f"{upper} {lower} {number}": number for number in range(level[upper] - 1, level[lower], -1)}
        for waypoint, number in waypoints.items():
            layers[number].append(waypoint)
        chains[upper, lower] = [upper, *waypoints, lower]
        for one, other in pairwise(chains[upper, lower]):
            neighbours.setdefault(one, []).append(other)
            neighbours.setdefault(other, []).append(one)
    x: dict[str, float] = {}
    for _ in range(SWEEPS):  # a layer is ordered by the mean position of each node's neighbours, from below and from above in turn
        for layer in (*layers, *reversed(layers)):
            layer.sort(key=lambda node: _mean([x[other] for other in neighbours[node] if other in x]))
            x |= {node: index - (len(layer) - 1) / 2 for index, node in enumerate(layer)}
    place = {node: (x[node], float(number)) for number, layer in enumerate(layers) for node in layer}
    return {room: place[room] for room in sorted(graph)}, {edge: [place[node] for node in chain] for edge, chain in chains.items()}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def picture(graph: Graph) -> Figure:
    """Draws the reduced graph: an arrow leads from a room to one that it imports."""
    middles, paths = layout(reduced(graph))
    columns, layers = np.transpose([*middles.values(), *(point for points in paths.values() for point in points)])
    figure = Figure(figsize=(COLUMN * (np.ptp(columns) + 1), LAYER * (np.ptp(layers) + 1)))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(min(columns) - 0.5, max(columns) + 0.5), ylim=(-0.5, max(layers) + 0.5))
    axes.set_axis_off()
    for points in paths.values():
        x, y = np.transpose(points[::-1])
        y[[0, -1]] += HALF_HEIGHT + HEAD, -HALF_HEIGHT  # between the boxes
        heights = np.linspace(y[0], y[-1], 12 * len(y))
        axes.plot(CubicHermiteSpline(y, x, 0 * x)(heights), heights, color=LINE, marker="v", markevery=[0])  # vertical at every point
    shape: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.05", "mutation_aspect": COLUMN / LAYER}
    for room, (column, layer) in middles.items():
        corner = (column - HALF_WIDTH, layer - HALF_HEIGHT)
        axes.add_patch(FancyBboxPatch(corner, 2 * HALF_WIDTH, 2 * HALF_HEIGHT, facecolor=FILL, edgecolor=LINE, **shape))
        axes.text(column, layer, room, color=INK, fontsize=11, ha="center", va="center_baseline")
    return figure


def svg(graph: Graph) -> str:
    """Returns the picture as SVG, which depends on the graph and on matplotlib alone, with what it shows in words."""
    about = {"Title": TITLE, "Description": in_words(graph), "Date": None, "Creator": None}
    with house_style(), matplotlib.rc_context({"svg.fonttype": "none", "figure.constrained_layout.use": False}):
        picture(graph).savefig(buffer := io.StringIO(), format="svg", transparent=True, metadata=about)
    return buffer.getvalue()


def in_words(graph: Graph) -> str:
    """Returns what the picture of a graph shows."""
    return "; ".join(f"{room} imports {', '.join(sorted(ends)) or 'none'}" for room, ends in sorted(reduced(graph).items()))


if __name__ == "__main__":
    write_atomically(ROOT / "docs" / "architecture.svg", svg(edges(ROOT)).encode())

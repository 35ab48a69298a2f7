"""Draw docs/floors.svg, the rooms of prunekit/ on their floors, and list every file in docs/architecture.md.

    python docs/floors.py

A room is a package or a single module directly in prunekit/. Everything is read from the source and nothing is
imported, so the drawing cannot flatter the code; tests/test_architecture.py checks the code by the same functions.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
HOUSE = "prunekit"
DOTTED = re.compile(rf"{HOUSE}(\.\w+)+(:\w+)?")
# the ground floor: its packages may use its single modules without standing a floor higher
FOUNDATION = {"config", "tokens", "weights", "cost", "losses", "files", "console", "environment"}

WIDTH, LEFT, TOP, BAND, BOX, SWEEPS = 1000, 70, 64, 92, 46, 40
INK, QUIET, LINE, CIRCLE, PAPER, STRIPE = "#1f2a44", "#6d7586", "#5570a8", "#c0392b", "#fcfbf7", "#f1efe8"

Sources = Mapping[str, str]  # module name -> source, packages included
Graph = Mapping[str, set[str]]  # name -> the names that it uses
Node = tuple[str, ...]  # a room as (room,), or a bend of a long arrow as (user, used, row)
Link = tuple[Node, Node]


@dataclass(frozen=True, order=True)
class Reference:
    """One place in a source that names a module or something in it."""

    line: int
    name: str  # absolute and dotted
    when: str  # "load", "call" (inside a function), "types" (for type checkers alone) or "string"


@dataclass(frozen=True, order=True)
class Arrow:
    """One place in a module that names another module of the package."""

    user: str
    line: int
    used: str
    when: str  # as of a reference


def read_sources(root: Path = ROOT) -> dict[str, str]:
    """Return the source of every module in prunekit/, by dotted name.

    Without __main__.py, which is no room: as train.py it only starts the command line, and nothing can import it.
    """
    sources = {}
    for path in sorted(set((root / HOUSE).rglob("*.py")) - {root / HOUSE / "__main__.py"}):
        sources[".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")] = path.read_text()
    return sources


def is_package(module: str, sources: Iterable[str]) -> bool:
    """Return whether a module contains other modules."""
    return any(name.startswith(module + ".") for name in sources)


def room_of(module: str) -> str:
    """Return the room that contains a module."""
    return module.split(".")[1]


def rooms(sources: Iterable[str]) -> dict[str, int]:
    """Return the number of modules in each room."""
    return dict(sorted(Counter(room_of(module) for module in sources if module != HOUSE).items()))


def imported(node: ast.Import | ast.ImportFrom, module: str, package: bool) -> list[str]:
    """Return the absolute names in an import statement; `from a import b` names a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    parts = module.split(".") + [""] * package
    base = parts[: len(parts) - node.level] if node.level else []
    return [".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names]


@cache
def references(source: str, module: str, package: bool = False) -> list[Reference]:
    """Return every import in a source, inside functions too, and every string that reads like a dotted path."""
    found: list[Reference] = []
    waiting: list[tuple[ast.AST, str]] = [(ast.parse(source), "load")]
    while waiting:
        node, when = waiting.pop()
        match node:
            case ast.Import() | ast.ImportFrom():
                found += (Reference(node.lineno, name, when) for name in imported(node, module, package))
            case ast.Expr(value=ast.Constant()):  # a docstring mentions a module without using it
                continue
            case ast.Constant(value=str(text)) if DOTTED.fullmatch(text):
                found.append(Reference(node.lineno, text.replace(":", "."), "string"))
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                when = "call"
        for_types = node.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) else []
        waiting += [(child, "types" if child in for_types else when) for child in ast.iter_child_nodes(node)]
    return sorted(found)


def arrows(sources: Sources) -> list[Arrow]:
    """Return every arrow between two modules; the public face, prunekit/__init__.py, takes no part."""
    found = set()
    for user, source in sources.items():
        for reference in references(source, user, is_package(user, sources)):
            used = reference.name
            while used and used not in sources:  # the longest part of the name that is a module
                used = used.rpartition(".")[0]
            if used not in ("", user, HOUSE) and user != HOUSE:
                found.add(Arrow(user, reference.line, used, reference.when))
    return sorted(found)


def graph(nodes: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Return what each node uses, itself left out."""
    uses: dict[str, set[str]] = {node: set() for node in nodes}
    for user, used in pairs:
        uses[user] |= {used} - {user}
    return uses


def module_graph(sources: Sources) -> dict[str, set[str]]:
    """Return which modules each module uses."""
    return graph(sources, ((arrow.user, arrow.used) for arrow in arrows(sources)))


def room_graph(sources: Sources) -> dict[str, set[str]]:
    """Return which rooms each room uses."""
    return graph(rooms(sources), ((room_of(arrow.user), room_of(arrow.used)) for arrow in arrows(sources)))


def reach(uses: Graph) -> dict[str, set[str]]:
    """Return what each node uses, directly or through others; a node in a circle reaches itself."""
    reached = {}
    for start in uses:
        seen, waiting = set(uses[start]), list(uses[start])
        while waiting:
            further = uses[waiting.pop()] - seen
            seen |= further
            waiting += further
        reached[start] = seen
    return reached


def circles(uses: Graph) -> list[tuple[str, ...]]:
    """Return the groups of nodes that all use each other, directly or through others."""
    reached = reach(uses)
    return sorted({tuple(sorted(b for b in reached[a] if a in reached[b])) for a in uses if a in reached[a]})


def floors(uses: Graph) -> dict[str, int]:
    """Return the floor of each room: one above the highest that it uses; rooms in a circle share theirs."""
    reached = reach(uses)
    floor = dict.fromkeys(sorted(uses), 1)
    for _ in uses:  # the longest path has no more steps than there are rooms
        for user in floor:
            for used in uses[user]:
                level = {user, used} <= FOUNDATION or user in reached[used]
                floor[user] = max(floor[user], floor[used] + (not level))
    return floor


def essential(uses: Graph) -> list[tuple[str, str]]:
    """Return the arrows that do not follow from others: A to C is left out where A uses B and B uses C."""
    reached, found = reach(uses), []
    for user in uses:
        for used in uses[user]:
            implied = any(used in reached[other] and other not in reached[used] for other in uses[user])
            if user in reached[used] or not implied:
                found.append((user, used))
    return sorted(found)


def width(node: Node) -> float:
    """Return the width of a room's box; a bend has none."""
    return 34 + 8.2 * max(len(node[0]), 7) if len(node) == 1 else 0


def placed(nodes: Sequence[Node], wanted: Mapping[Node, float]) -> dict[Node, float]:
    """Return the middle of each node of a row: in this order, apart, and near where each wants to be."""
    needs = [width(node) + (68 if width(node) else 28) for node in nodes]
    lefts, rights = [float(LEFT)], [float(WIDTH)]
    for at, node in enumerate(nodes):
        start = max(lefts[-1], min(wanted[node] - needs[at] / 2, WIDTH - sum(needs[at:])))
        lefts[-1:] = [start, start + needs[at]]
    for at, node in reversed(list(enumerate(nodes))):
        end = min(rights[0], max(wanted[node] + needs[at] / 2, LEFT + sum(needs[: at + 1])))
        rights[:1] = [end - needs[at], end]
    # pushed to the right and pushed to the left they are apart, and so they are halfway between
    return {node: (left + right) / 2 for node, left, right in zip(nodes, lefts[:-1], rights[1:], strict=True)}


def arranged(row: Mapping[Node, int], links: Sequence[Link]) -> dict[Node, float]:
    """Return the middle of each node, after sorting the rows until few arrows cross and all are short."""
    order = {at: sorted(node for node in row if row[node] == at) for at in sorted(set(row.values()))}
    near = {node: [b if a == node else a for a, b in links if node in (a, b)] for node in row}
    x = {node: WIDTH * (at + 1) / (len(nodes) + 1) for nodes in order.values() for at, node in enumerate(nodes)}
    tries = []
    for sweep in range(SWEEPS):
        for at in sorted(order, reverse=sweep % 2 == 0):
            pull = {node: mean([x[other] for other in near[node]] or [x[node]]) for node in order[at]}
            x |= placed(sorted(order[at], key=lambda node: (pull[node], node)), pull)
        pairs = [(a, b, c, d) for (a, b), (c, d) in combinations(links, 2) if row[a] == row[c]]
        crossings = sum((x[a] - x[c]) * (x[b] - x[d]) < 0 for a, b, c, d in pairs)
        tries.append((crossings, sum(abs(x[a] - x[b]) for a, b in links), sorted(x.items())))
    return dict(min(tries)[2])


def ports(x: Mapping[Node, float], links: Sequence[Link], end: int) -> dict[Link, float]:
    """Return where each link touches its node at this end: side by side, in the order of their other ends."""
    touched = {}
    for node in {link[end] for link in links}:
        here = sorted((link for link in links if link[end] == node), key=lambda link: (x[link[1 - end]], link))
        for at, link in enumerate(here, 1):
            touched[link] = x[node] + 0.7 * width(node) * (at / (len(here) + 1) - 0.5)
    return touched


def drawing(sources: Sources) -> str:
    """Return the SVG: it changes when a room, its size, its floor or an arrow does, and with no other edit."""
    modules, uses = rooms(sources), room_graph(sources)
    floor, packages = floors(uses), {room for room in modules if is_package(f"{HOUSE}.{room}", sources)}
    # the ground floor has two rows, since its packages stand on its single modules
    row: dict[Node, int] = {(room,): floor[room] - (floor[room] == 1 and room not in packages) for room in modules}
    chains: list[list[Node]] = []
    for user, used in essential(uses):
        bends: dict[Node, int] = {(user, used, str(at)): at for at in range(row[user,] - 1, row[used,], -1)}
        chains.append([(user,), *bends, (used,)])
        row |= bends
    top, circular = max(row.values()), {room for circle in circles(uses) for room in circle}
    links = [link for nodes in chains for link in pairwise(nodes)]
    x, y = arranged(row, links), {node: TOP + BAND * (top - at) + (BAND - BOX) // 2 for node, at in row.items()}
    leave, arrive = ports(x, links, 0), ports(x, links, 1)
    shapes = [band(at, top) for at in range(top, 0, -1)]
    for nodes in chains:
        colour = CIRCLE if {*nodes[0], *nodes[-1]} <= circular else LINE
        shapes.append(curve([(leave[a, b], y[a] + BOX, arrive[a, b], y[b]) for a, b in pairwise(nodes)], colour))
    for room in modules:
        shapes.append(box(room, x[room,], y[room,], modules[room], room in packages, uses[room]))
    return page(shapes, TOP + BAND * (top + 1), f"{len(modules)} rooms, {sum(modules.values())} modules")


def text(x: float, y: float, words: object, size: int, colour: str = QUIET, more: str = "") -> str:
    """Return a line of text."""
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" fill="{colour}"{more}>{words}</text>'


def band(floor: int, top: int) -> str:
    """Return a floor's stripe and number; the ground floor is two rows high."""
    y, height = TOP + BAND * (top - floor), BAND * (2 if floor == 1 else 1)
    stripe = f'<rect y="{y}" width="{WIDTH}" height="{height}" fill="{STRIPE if floor % 2 else PAPER}"/>'
    return stripe + text(24, y + height / 2 + 8, floor, 24, more=' opacity="0.55"')


def curve(parts: Sequence[tuple[float, float, float, float]], colour: str) -> str:
    """Return an arrow: from (x, y) to (x, y) between two rows, and straight through the rows that it passes."""
    path = f"M{parts[0][0]:.0f} {parts[0][1]}"
    for x, y, to, end in parts:
        half, end = ((y + end) // 2, end) if end > y else (y + BOX // 2, y)  # within a row it hangs below the boxes
        path += f" L{x:.0f} {y} C{x:.0f} {half} {to:.0f} {half} {to:.0f} {end}"
    look = f'fill="none" stroke="{colour}" stroke-width="1.3" opacity="0.65" marker-end="url(#{colour[1:]})"'
    return f'<path d="{path}" {look}/>'


def box(room: str, x: float, y: float, modules: int, package: bool, uses: set[str]) -> str:
    """Return a room's box, with everything that it uses as its tooltip."""
    wide, middle = width((room,)), ' text-anchor="middle"'
    look = f'rx="7" fill="#ffffff" stroke="{INK}" stroke-width="1.2"' + ("" if package else ' stroke-dasharray="4 3"')
    rectangle = f'<rect x="{x - wide / 2:.0f}" y="{y}" width="{wide:.0f}" height="{BOX}" {look}/>'
    name = text(x, y + 20, room, 15, INK, f'{middle} font-weight="600"')
    size = text(x, y + 37, f"{modules} module{'s' * (modules != 1)}", 11, more=middle)
    return f"<g><title>{room} uses {', '.join(sorted(uses)) or 'no room'}</title>{rectangle}{name}{size}</g>"


def page(shapes: Sequence[str], bottom: int, size: str) -> str:
    """Return the whole picture: the shapes, a title above them, and below them what an arrow means."""
    tip = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"'
    tips = [f'<marker id="{c[1:]}" {tip}><path d="M0 1 L7 4 L0 7 z" fill="{c}"/></marker>' for c in (LINE, CIRCLE)]
    area = f'width="{WIDTH}" height="{bottom + 66}"'
    first = "An arrow means “imports” and points to a lower floor, or on floor 1 from a package to a single module."
    second = "Arrows that follow from others are left out. Drawn from the source by python docs/floors.py."
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 66}" {area} role="img" '
        f'aria-label="The rooms of {HOUSE} on their floors" font-family="Inter, Helvetica, Arial, sans-serif">',
        *tips,
        f'<rect {area} rx="10" fill="{PAPER}"/>',
        text(LEFT, 41, f"The floors of {HOUSE}", 20, INK, ' font-weight="600"'),
        text(WIDTH - 24, 41, size, 13, more=' text-anchor="end"'),
        *shapes,
        text(LEFT, bottom + 28, first, 13),
        text(LEFT, bottom + 48, second, 13),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def listing(sources: Sources) -> str:
    """Return a Markdown list of every module with the first line of its docstring, room by room, top floor first."""
    floor, lines = floors(room_graph(sources)), []
    for room in sorted(rooms(sources), key=lambda room: (-floor[room], room)):
        for module in sorted(name for name in sources if name != HOUSE and room_of(name) == room):
            first = (ast.get_docstring(ast.parse(sources[module])) or "").partition("\n")[0]
            parts = module.split(".")[1:]
            if is_package(module, sources):
                title = f"`{'/'.join(parts)}/`" + (f" (floor {floor[room]})" if len(parts) == 1 else "")
                lines += [""] * (len(parts) == 1) + [f"{'  ' * (len(parts) - 1)}- **{title}** {first}"]
            else:
                lines += [f"{'  ' * (len(parts) - 1)}- `{parts[-1]}.py`: {first}"]
    return "\n".join(lines).strip("\n") + "\n"


def with_listing(page: str, sources: Sources) -> str:
    """Return a page with the list of files between its two markers."""
    before, _, rest = page.partition("<!-- tree -->\n")
    return f"{before}<!-- tree -->\n{listing(sources)}<!-- end of tree -->{rest.partition('<!-- end of tree -->')[2]}"


if __name__ == "__main__":
    found = read_sources()
    (ROOT / "docs" / "floors.svg").write_text(drawing(found))
    architecture = ROOT / "docs" / "architecture.md"
    architecture.write_text(with_listing(architecture.read_text(), found))

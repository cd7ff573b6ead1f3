"""Steps as a drawing: boxes in layers from top to bottom, arrows that keep clear of them."""

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from foveate.describe.steps import Step

WIDTH, GAP = 184, 28
"""Of a box, and between two boxes of one layer."""
LINE, PADDING, BETWEEN = 17, 9, 34
"""Height of a line of text, margin inside a box, distance of layers."""
LANE = 26
"""Width of an arrow that passes a layer."""
STIFFNESS = 8.0
"""How much rather a box moves than an arrow bends."""
MARGIN = 16
SWEEPS = 20

STYLE = """
.card { fill: #ffffff; }
.box { fill: #f3f5f9; stroke: #aab4c8; }
.end { fill: #e3ecff; stroke: #5b7fd0; }
.edge { fill: none; stroke: #7d889e; stroke-width: 1.4; }
.tip { fill: #7d889e; }
text { font: 12.5px system-ui, sans-serif; text-anchor: middle; fill: #1d2433; }
.shape { font: 12px ui-monospace, monospace; fill: #55617a; }
@media (prefers-color-scheme: dark) {
  .card { fill: #1b1f2a; }
  .box { fill: #262c3a; stroke: #4d5870; }
  .end { fill: #24345c; stroke: #6f93e6; }
  .edge { stroke: #8d99b3; }
  .tip { fill: #8d99b3; }
  text { fill: #e7ebf4; }
  .shape { fill: #aeb9d0; }
}
"""


@dataclass(eq=False)
class _Item:
    """A box, or the place where an arrow passes a layer."""

    layer: int
    step: Step | None = None
    above: list["_Item"] = field(default_factory=list)
    below: list["_Item"] = field(default_factory=list)
    x: float = 0.0
    top: float = 0.0

    @property
    def lines(self) -> list[str]:
        return [] if self.step is None else textwrap.wrap(", ".join(self.step.labels), 26)

    @property
    def width(self) -> float:
        return LANE if self.step is None else WIDTH

    @property
    def height(self) -> float:
        return 0.0 if self.step is None else LINE * (len(self.lines) + 1) + 2 * PADDING


def svg(steps: Sequence[Step], title: str) -> str:
    """A drawing of the steps that reads on light and on dark pages."""
    layers = _layers(steps)
    for sweep in range(SWEEPS):
        _order(layers, down=sweep % 2 == 0)
    _place(layers)
    items = [item for layer in layers for item in layer]
    left = min(item.x - item.width / 2 for item in items) - MARGIN
    width = max(item.x + item.width / 2 for item in items) + MARGIN - left
    height = max(item.top + item.height for item in items) + MARGIN
    boxes = [_box(item, item.step in (steps[0], steps[-1])) for item in items if item.step]
    arrows = [_arrow(item, below) for item in items if item.step for below in item.below]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="{left:.0f} 0 {width:.0f} {height:.0f}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
            f'<rect class="card" x="{left:.0f}" width="{width:.0f}" height="{height:.0f}" rx="8"/>',
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


def _layers(steps: Sequence[Step]) -> list[list[_Item]]:
    """Each step below all that it comes from; long arrows pass the layers between."""
    depth: dict[Step, int] = {}
    for step in steps:
        depth[step] = max((depth[parent] + 1 for parent in step.parents), default=0)
    layers: list[list[_Item]] = [[] for _ in range(max(depth.values()) + 1)]
    items: dict[Step, _Item] = {}
    for step in steps:
        items[step] = _Item(depth[step], step)
        layers[depth[step]].append(items[step])
        for parent in step.parents:
            at = items[parent]
            for layer in range(depth[parent] + 1, depth[step]):
                lane = _Item(layer)
                layers[layer].append(lane)
                _connect(at, lane)
                at = lane
            _connect(at, items[step])
    return layers


def _connect(above: _Item, below: _Item) -> None:
    above.below.append(below)
    below.above.append(above)


def _order(layers: list[list[_Item]], *, down: bool) -> None:
    """Each layer in the order of the mean position of its neighbours, to cross few arrows."""
    for layer in layers if down else reversed(layers):
        places = {item: place for other in layers for place, item in enumerate(other)}

        def mean(item: _Item, places: dict[_Item, int] = places) -> float:
            near = item.above if down else item.below
            return sum(places[other] for other in near) / len(near) if near else places[item]

        layer.sort(key=mean)


def _place(layers: list[list[_Item]]) -> None:
    """Items near the middle of their neighbours, none on another; layers under each other."""
    top = float(MARGIN)
    for layer in layers:
        for item in layer:
            item.top = top
        _spread(layer, [0.0] * len(layer))
        top += max(item.height for item in layer) + BETWEEN
    for sweep in range(SWEEPS):
        for layer in layers if sweep % 2 == 0 else reversed(layers):
            near = [_near(item, down=sweep % 2 == 0) for item in layer]
            _spread(layer, [sum(other.x for other in others) / len(others) for others in near])


def _near(item: _Item, *, down: bool) -> list[_Item]:
    """What an item should be near to: arrows go straight on rather than to their boxes."""
    near = (item.above if down else item.below) or [item]
    return near if item.step else [other for other in near if other.step is None] or [item]


def _spread(layer: list[_Item], wanted: list[float]) -> None:
    """Place a layer as near to the wanted positions as its order and widths allow."""
    offsets = [0.0]
    for left, right in itertools.pairwise(layer):
        offsets.append(offsets[-1] + (left.width + right.width) / 2 + GAP)
    # Less its offset, no position may be left of that of its left neighbour: the nearest such
    # positions are means over neighbours that were out of order.
    blocks: list[list[tuple[float, float]]] = []
    for item, want, offset in zip(layer, wanted, offsets, strict=True):
        blocks.append([(want - offset, STIFFNESS if item.step is None else 1.0)])
        while len(blocks) > 1 and _mean(blocks[-2]) > _mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    placed = [_mean(block) for block in blocks for _ in block]
    for item, offset, place in zip(layer, offsets, placed, strict=True):
        item.x = place + offset


def _mean(block: list[tuple[float, float]]) -> float:
    return sum(place * weight for place, weight in block) / sum(weight for _, weight in block)


def _box(item: _Item, end: bool) -> str:
    assert item.step is not None
    baseline = item.top + PADDING + LINE - 5
    text = [
        f'<text x="{item.x:.1f}" y="{baseline + LINE * row:.1f}">{escape(line)}</text>'
        for row, line in enumerate(item.lines)
    ]
    return "\n".join(
        [
            f'<rect class="{"end" if end else "box"}" x="{item.x - WIDTH / 2:.1f}" '
            f'y="{item.top:.1f}" width="{WIDTH}" height="{item.height:.1f}" rx="6"/>',
            *text,
            f'<text class="shape" x="{item.x:.1f}" y="{baseline + LINE * len(text):.1f}">'
            f"{escape(item.step.shape)}</text>",
        ]
    )


def _arrow(start: _Item, below: _Item) -> str:
    x, y = start.x, start.top + start.height
    path = [f"M{x:.1f} {y:.1f}"]
    while True:
        middle = (y + below.top) / 2
        path.append(
            f"C{x:.1f} {middle:.1f} {below.x:.1f} {middle:.1f} {below.x:.1f} {below.top:.1f}"
        )
        if below.step is not None:
            return f'<path class="edge" marker-end="url(#tip)" d="{"".join(path)}"/>'
        x, (after,) = below.x, below.below
        y = after.top - BETWEEN
        path.append(f"V{y:.1f}")
        below = after

"""Plots for pages: SVG by matplotlib, rewritten so that it stands inside HTML under a strict content security policy.

matplotlib says in `style` attributes what it wants; a page that allows no inline style would show black shapes. So style
becomes attributes, every colour becomes `currentColor`, and the id given to an artist (`set_gid`) becomes a class, for which
the page's own style sheet has a colour, a light and a dark one. Equal data give equal bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator

from autograder.language import _

__all__ = ["grades", "ratios", "speed"]

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
CLASSES = frozenset({"own", "asked", "reference", "credit", "bars"})
INCH = 72
"""matplotlib's figures are measured in inches, its SVG in points."""
STEPS = (1, 1.5, 2, 3, 5, 7)
DROPPED = frozenset({"font-family", "stroke-linejoin"})
SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "autograder",
    "font.size": 12,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
}


def speed(
    label: str, name: str, *, ratio: float, low: float, high: float, asked: float, naive: float | None = None
) -> str:
    """One submission's speed: its ratio to the reference with the interval, the reference (1) and what is asked for.

    All are ratios t_reference / t_submission, on a logarithmic axis. `label` is the alternative text, `name` is unique on
    the page. Between `naive` and `asked` credit grows.
    """
    known = [each for each in (low, high, ratio, asked, naive or asked, 1.0) if math.isfinite(each) and each > 0]
    with _figure(420, 128) as (figure, axes):
        axes.set_position((0.03, 0.24, 0.94, 0.72))
        _logarithmic(axes, min(known) / 1.4, max(known) * 1.4)
        axes.set_ylim(0, 4)
        if naive is not None:
            axes.fill_between([naive, asked], 0, 1.1, linewidth=0, gid="credit")
        _mark(axes, 1.0, 4, _("reference"), "reference")
        _mark(axes, asked, 3, _("asked for: {ratio:g}").format(ratio=asked), "asked")
        if all(math.isfinite(each) and each > 0 for each in (ratio, low, high)):
            axes.plot([low, high], [0.55, 0.55], linewidth=5, solid_capstyle="butt", gid="own")
            axes.plot([ratio], [0.55], "o", markersize=10, gid="own")
            _text(axes, ratio, 1.25, _("yours: {ratio:.2f}").format(ratio=ratio), "own")
        return _inline(figure, name, label)


def grades(label: str, name: str, points: Sequence[float], max_points: float) -> str:
    """How many submissions have how many points, in at most twenty bins."""
    bins = max(1, min(20, math.ceil(max_points)))
    with _figure(560, 200) as (figure, axes):
        axes.set_position((0.08, 0.24, 0.9, 0.72))
        axes.hist(points, bins=bins, range=(0, max_points), rwidth=0.9, gid="bars")
        _named(axes, "bars")
        axes.set_xlim(0, max_points)
        _counted(axes, "points")
        return _inline(figure, name, label)


def ratios(label: str, name: str, measured: Sequence[float], asked: float) -> str:
    """How the speeds of a class spread: ratios t_reference / t_submission on a logarithmic axis, and what is asked for."""
    known = [each for each in measured if math.isfinite(each) and each > 0]
    low, high = min([*known, asked, 1.0]) / 1.3, max([*known, asked, 1.0]) * 1.3
    edges = [low * (high / low) ** (number / 24) for number in range(25)]
    with _figure(560, 200) as (figure, axes):
        axes.set_position((0.08, 0.24, 0.9, 0.66))
        _logarithmic(axes, low, high)
        axes.hist(known, bins=edges, rwidth=0.9, gid="bars")
        _named(axes, "bars")
        top = max(axes.get_ylim()[1], 1.0)
        axes.set_ylim(0, top)
        axes.plot([asked, asked], [0, top], linewidth=2, gid="asked")
        _text(axes, asked, top * 1.04, f"asked for: {asked:g}", "asked")
        _counted(axes, "times as fast as the reference")
        return _inline(figure, name, label)


@contextmanager
def _figure(width: int, height: int) -> Iterator[tuple[Figure, Axes]]:
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(width / INCH, height / INCH))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        figure.patch.set_visible(False)
        axes.patch.set_visible(False)
        axes.yaxis.set_major_locator(NullLocator())
        yield figure, axes


def _logarithmic(axes: Axes, low: float, high: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in STEPS if low <= step * 10.0**power <= high]
    while len(ticks) > 7:
        ticks = ticks[::2]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:g}" for tick in ticks]))


def _counted(axes: Axes, what: str) -> None:
    axes.set_xlabel(what)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def _mark(axes: Axes, at: float, height: float, text: str, gid: str) -> None:
    """A line from the axis up to a text."""
    axes.plot([at, at], [0, height - 0.85], linewidth=2, linestyle="--" if gid == "reference" else "-", gid=gid)
    _text(axes, at, height - 0.75, text, gid)


def _text(axes: Axes, at: float, height: float, text: str, gid: str) -> None:
    """Text above a place of the axis, inside of the plot."""
    low, high = axes.get_xlim()
    share = math.log(at / low) / math.log(high / low)
    side = "left" if share < 0.25 else "right" if share > 0.75 else "center"
    axes.text(at, height, text, horizontalalignment=side, gid=gid)


def _named(axes: Axes, gid: str) -> None:
    for patch in axes.patches:
        patch.set_gid(gid)


def _inline(figure: Figure, name: str, label: str) -> str:
    """The figure as an element for HTML: no style, no script, no id that another plot could have."""
    written = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing", UserWarning
        )  # it only measures; the reader's browser has them
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    root = ElementTree.fromstring(written.getvalue())  # noqa: S314  # matplotlib wrote it just now
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _plain(element, name)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib |= {"class": "plot", "role": "img", "aria-label": label}
    return ElementTree.tostring(root, encoding="unicode")


def _plain(element: ElementTree.Element, name: str) -> None:
    """Style as attributes, colours as `currentColor`, ids as classes or unique on the page."""
    for key, value in re.findall(r"([a-z-]+):\s*([^;]+)", element.attrib.pop("style", "")):
        if key not in DROPPED:
            coloured = key in ("fill", "stroke") and value.startswith("#")
            element.set(key, "currentColor" if coloured else value.strip())
    if (known := element.attrib.pop("id", None)) is not None:
        if known in CLASSES:
            element.set("class", known)
        elif element.tag != f"{{{SVG}}}g":
            element.set("id", f"{name}-{known}")
    if (link := element.attrib.pop(f"{{{XLINK}}}href", None)) is not None:
        element.set("href", f"#{name}-{link[1:]}")
    if (clip := element.get("clip-path")) is not None:
        element.set("clip-path", clip.replace("url(#", f"url(#{name}-"))
    if element.tag == f"{{{SVG}}}text":
        element.set("fill", "currentColor")

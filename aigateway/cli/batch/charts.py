"""Charts as inline SVG.

A chart fits any width: positions are percentages, and text keeps its size. Colours are classes of
`report.css`, which has a light and a dark scheme.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from aigateway.cli.batch.summary import count, duration, printable

__all__ = ["Bar", "Part", "bar_chart", "histogram_chart", "legend", "safe"]

_ROW = 22
"""Pixels for a label, and for each bar below it."""
_BAR = 12
_BASELINE = 10
"""Pixels from the top of a bar to the baseline of the text next to it."""
_BARS_SHARE = 68.0
"""Percent of the width for the longest bar; its figures take the rest."""
_LONGEST_LABEL = 44
_PLOT_TOP, _PLOT, _AXIS = 34, 150, 22
"""Pixels of the histogram's marks, bars and axis."""
_LEAST_APART = 8.0
"""Percent of the width between the labels of two marks."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a bar; `kind` is the class with its colour."""

    value: float
    kind: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of parts from left to right, a label above it (not repeated) and figures next to it."""

    label: str
    parts: Sequence[Part]
    figures: str


def safe(text: str) -> str:
    """Escape text for HTML and XML content and attributes."""
    return escape(printable(text))


def bar_chart(title: str, bars: Sequence[Bar]) -> str:
    """Draw horizontal bars on a common scale from 0."""
    longest = max((sum(part.value for part in bar.parts) for bar in bars), default=0.0)
    scale = _BARS_SHARE / longest if longest > 0 else 0.0
    drawn, top, label = [], 0, None
    for bar in bars:
        if bar.label != label:
            top += 6 if label is not None else 0
            drawn.append(_label(bar.label, top))
            top, label = top + _ROW, bar.label
        drawn.append(_bar(bar, top, scale))
        top += _BAR + 8
    return _svg(title, top, drawn)


def histogram_chart(
    title: str, bars: Sequence[tuple[float, float, int]], marks: Iterable[tuple[str, float]]
) -> str:
    """Draw a histogram of durations with marks.

    Args:
        title: A description for screen readers.
        bars: From seconds, to seconds, count; adjacent.
        marks: A name and seconds.
    """
    most = max((number for _, _, number in bars), default=0)
    width = 100 / len(bars) if bars else 100.0
    foot = _PLOT_TOP + _PLOT
    drawn = [f'<line class="axis" x1="0" x2="100%" y1="{foot}" y2="{foot}"/>']
    for place, (low, high, number) in enumerate(bars):
        height = max(1.0, _PLOT * number / most) if number else 0.0
        label = f"{duration(low)} to {duration(high)}: {count(number)}"
        drawn.append(
            f'<rect class="answers" x="{place * width:.2f}%" width="{width * 0.86:.2f}%"'
            f' y="{foot - height:.1f}" height="{height:.1f}"><title>{safe(label)}</title></rect>'
        )
    drawn.extend(_marks(bars, marks))
    drawn.extend(_axis(bars, foot + 16))
    return _svg(title, foot + _AXIS, drawn)


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """List what the colours mean: class and words."""
    items = (f'<li><i class="{kind}"></i>{safe(words)}</li>' for kind, words in entries)
    return f'<ul class="legend">{"".join(items)}</ul>'


def _svg(title: str, height: float, drawn: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="100%" height="{height}"'
        f' aria-label="{safe(title)}">{"".join(drawn)}</svg>'
    )


def _label(label: str, top: int) -> str:
    short = label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
    return (
        f'<text class="label" x="0" y="{top + 15}">{safe(short)}<title>{safe(label)}</title></text>'
    )


def _bar(bar: Bar, top: int, scale: float) -> str:
    drawn, left = [], 0.0
    for part in bar.parts:
        width = part.value * scale
        if width > 0:
            drawn.append(
                f'<rect class="{part.kind}" x="{left:.2f}%" y="{top}" width="{width:.2f}%"'
                f' height="{_BAR}" rx="2"/>'
            )
        left += width
    foot = top + _BASELINE
    drawn.append(f'<text x="{left:.2f}%" dx="6" y="{foot}">{safe(bar.figures)}</text>')
    return "".join(drawn)


def _marks(
    bars: Sequence[tuple[float, float, int]], marks: Iterable[tuple[str, float]]
) -> Iterable[str]:
    taken = -_LEAST_APART
    for name, seconds in marks:
        x = _place(bars, seconds)
        yield f'<line class="mark" x1="{x:.2f}%" x2="{x:.2f}%" y1="16" y2="{_PLOT_TOP + _PLOT}"/>'
        if x - taken >= _LEAST_APART:
            yield f'<text x="{x:.2f}%" y="11" text-anchor="{_anchor(x)}">{safe(name)}</text>'
            taken = x


def _place(bars: Sequence[tuple[float, float, int]], seconds: float) -> float:
    """Return percent from the left; linear inside a bar."""
    for place, (low, high, _) in enumerate(bars):
        if seconds <= high:
            return 100 * (place + max(0.0, (seconds - low) / (high - low))) / len(bars)
    return 100.0


def _axis(bars: Sequence[tuple[float, float, int]], foot: float) -> Iterable[str]:
    edges = [low for low, _, _ in bars[:1]] + [high for _, high, _ in bars]
    steps = -(-len(bars) // 4) or 1
    for place in range(0, len(edges), steps):
        x = 100 * place / max(1, len(bars))
        yield (
            f'<text x="{x:.2f}%" y="{foot}" text-anchor="{_anchor(x)}">'
            f"{safe(duration(edges[place]))}</text>"
        )


def _anchor(x: float) -> str:
    return "start" if x < 6 else "end" if x > 94 else "middle"

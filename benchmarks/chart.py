"""A horizontal bar chart as SVG, on a logarithmic scale, because a hundredfold is ordinary here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

OURS = "#0b6e4f"
OTHERS = "#9aa5b1"
WIDTH, LABEL, ROW, TOP = 820, 330, 26, 62


@dataclass(frozen=True)
class Bars:
    """One bar for each label; ours are the ones that begin with "aigateway"."""

    title: str
    unit: str
    bars: Sequence[tuple[str, float]]


def draw(chart: Bars) -> str:
    height = TOP + ROW * len(chart.bars) + 14
    bars = "\n".join(
        _bar(index, label, value, _length(value, chart))
        for index, (label, value) in enumerate(chart.bars)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" \
font-family="system-ui, sans-serif" font-size="13">
<rect width="100%" height="100%" fill="white"/>
<text x="12" y="24" font-size="16" font-weight="bold">{escape(chart.title)}</text>
<text x="12" y="44" fill="#52606d">{escape(chart.unit)}, logarithmic scale, less is better</text>
{bars}
</svg>
"""


def _length(value: float, chart: Bars) -> float:
    values = [max(each, 1e-9) for _, each in chart.bars]
    low, high = math.log10(min(values) / 2), math.log10(max(values))
    room = WIDTH - LABEL - 90
    return max(2.0, (math.log10(max(value, 1e-9)) - low) / (high - low or 1) * room)


def _bar(index: int, label: str, value: float, length: float) -> str:
    y = TOP + ROW * index
    color = OURS if label.startswith("aigateway") else OTHERS
    return (
        f'<text x="{LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(label)}</text>'
        f'<rect x="{LABEL}" y="{y}" width="{length:.0f}" height="{ROW - 8}" fill="{color}"/>'
        f'<text x="{LABEL + length + 6:.0f}" y="{y + 14}">{value:.3g}</text>'
    )

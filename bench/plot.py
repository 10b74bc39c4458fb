"""The figures as bars: medians, with the spread."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from bench.samples import Figures

mpl.use("Agg")

from matplotlib import pyplot as plt


def draw(figures: Figures, target: Path) -> None:
    """Write `target` with suffixes .png and .svg: one panel for each unit."""
    units = sorted({series.unit for series in figures.values()}, reverse=True)
    groups = [[name for name, s in figures.items() if s.unit == unit] for unit in units]
    sizes = [len(group) for group in groups]
    figure, panels = plt.subplots(
        len(units),
        1,
        figsize=(10, 0.42 * sum(sizes) + 1.6),
        height_ratios=sizes,
        squeeze=False,
    )
    for panel, unit, names in zip(panels[:, 0], units, groups, strict=True):
        medians = [figures[name].median for name in names]
        low = [m - min(figures[name].values) for m, name in zip(medians, names, strict=True)]
        high = [max(figures[name].values) - m for m, name in zip(medians, names, strict=True)]
        bars = panel.barh(names, medians, xerr=[low, high], color="#4c78a8", ecolor="#999999")
        panel.bar_label(bars, [f"{median:.1f}" for median in medians], padding=4, fontsize=8)
        panel.invert_yaxis()
        panel.set_xlabel(f"{unit}, median; whiskers from least to most")
        if max(medians) > 50 * min(medians):
            panel.set_xscale("log")
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    figure.tight_layout()
    for suffix in (".png", ".svg"):
        figure.savefig(target.with_suffix(suffix), dpi=120)
    plt.close(figure)

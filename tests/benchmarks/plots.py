"""Draws the results of `growth` for the page on performance: `python -m tests.benchmarks.plots`."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .growth import RESULTS

FOLDER = Path(__file__).parents[2] / "docs" / "images" / "performance"
LABELS = {"plain": "plain StreamingResponse", "resumable-ids": "resumable, with event ids"}
COLORS = {"plain": "#888888", "resumable-ids": "#009485"}

# The same file from the same numbers.
mpl.rcParams.update({"svg.hashsalt": "fastapi-resumable", "svg.fonttype": "none", "font.size": 9})


def _axis(axis: Any, points: dict[str, Any], key: str, title: str, x: str, y: str, scale: float = 1.0) -> None:
    """One diagram, of one number."""
    for kind, row in points.items():
        axis.plot(
            [point["x"] for point in row],
            [point[key] * scale for point in row],
            marker="o",
            markersize=4,
            label=LABELS[kind],
            color=COLORS[kind],
        )
    axis.set(title=title, xlabel=x, ylabel=y, xscale="log")
    axis.set_ylim(bottom=0)
    axis.grid(visible=True, alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def draw(name: str, points: dict[str, Any], diagrams: list[tuple[Any, ...]], folder: Path) -> None:
    """A file of some diagrams side by side; a seventh value `log` makes both axes logarithmic."""
    figure = Figure(figsize=(4.2 * len(diagrams), 3.1), layout="constrained", facecolor="white")
    axes = figure.subplots(1, len(diagrams), squeeze=False)[0]
    for axis, (key, title, x, y, scale, *log) in zip(axes, diagrams, strict=True):
        _axis(axis, points, key, title, x, y, scale)
        if log:
            axis.set_yscale("log")
            axis.relim()
            axis.autoscale(axis="y")
    axes[0].legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


def draw_all(results: dict[str, Any], folder: Path = FOLDER) -> None:
    """All there is on the page."""
    x = "streams, an event every two seconds each"
    draw(
        "streams",
        results["streams"],
        [
            ("cpu_pct", "CPU of the server", x, "% of one core", 1, "log"),
            ("rss_growth_kib", "Memory", x, "MiB more than at the start", 1 / 1024, "log"),
        ],
        folder,
    )
    x = "readers of one stream of two events a second"
    draw(
        "readers",
        results["readers"],
        [
            ("cpu_pct", "CPU of the server", x, "% of one core", 1, "log"),
            ("rss_growth_kib", "Memory", x, "MiB more than at the start", 1 / 1024, "log"),
        ],
        folder,
    )
    x = "bytes of an event"
    draw(
        "sizes",
        results["sizes"],
        [
            ("us_per_event", "CPU of an event", x, "µs", 1, "log"),
            ("mb_per_cpu_s", "Throughput", x, "MB per second of CPU", 1),
        ],
        folder,
    )
    x = "MiB of a stream, of which 4 MiB are kept"
    draw(
        "lengths",
        results["lengths"],
        [
            ("cpu", "CPU of the stream", x, "seconds", 1, "log"),
            ("peak_growth_kib", "Peak memory", x, "MiB more than at the start", 1 / 1024),
        ],
        folder,
    )


if __name__ == "__main__":
    draw_all(json.loads((RESULTS / "growth.json").read_text()))

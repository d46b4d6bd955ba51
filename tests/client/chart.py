"""Drawings of a run: three panels, each with a title and both axes named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yap_client import YapError

from .load import Bounds
from .turn import TurnRecord


class OutputError(YapError):
    """A file cannot be written."""


def check_output(*paths: Path | None) -> None:
    """Make sure that files can be written at the end, before anything is begun.

    Raises:
        OutputError: a folder is missing, a name is taken by a folder, or nothing may be written there.
    """
    for path in filter(None, paths):
        if path.is_dir():
            raise OutputError(f"{path}: expected a file's name, found a folder")
        existed = path.exists()
        try:
            path.open("ab").close()
        except OSError as error:
            raise OutputError(f"{path}: expected a place that can be written, found: {error.strerror}") from None
        if not existed:
            path.unlink()


def check_drawing(path: Path | None) -> None:
    """Make sure that a drawing can be made.

    Raises:
        OutputError: matplotlib is not installed, or it cannot write this kind of file.
    """
    if path is None:
        return
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise OutputError(
            "--plot: expected matplotlib, found none; `pip install matplotlib`, or leave --plot out"
        ) from None
    figure = pyplot.figure()
    known = figure.canvas.get_supported_filetypes()
    pyplot.close(figure)
    ending = path.suffix.lstrip(".").lower()
    if ending not in known:
        raise OutputError(f"--plot: expected a name that ends in one of {', '.join(sorted(known))}, found {path.name}")


def draw(path: Path, title: str, turns: Sequence[TurnRecord], began: float, bounds: Bounds) -> None:
    """Draw the first token's distribution, the whole turn's, and the tokens a second over time."""
    from matplotlib import pyplot

    figure, (first, whole, tokens) = pyplot.subplots(1, 3, figsize=(15, 4.5))
    distribution(first, "Time to first token", [turn.ttft for turn in turns if turn.ttft is not None], bounds.ttft)
    distribution(
        whole, "Time to the end of the turn", [turn.total for turn in turns if turn.total is not None], bounds.total
    )
    over_time(tokens, turns, began)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def distribution(axes: Any, title: str, seconds: Sequence[float], bound: float | None) -> None:
    """Draw the share of turns that took at most so long."""
    ordered = sorted(value * 1000 for value in seconds)
    shares = [(index + 1) / len(ordered) for index in range(len(ordered))]
    axes.step([0.0, *ordered], [0.0, *shares], where="post")
    widest = max([*ordered[-1:], (bound or 0.0) * 1000])
    for share in (0.5, 0.95) if ordered else ():
        value = ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]
        axes.axhline(share, color="0.85", linewidth=0.8, zorder=0)
        told, beside = f"p{share * 100:.0f}  {value:.0f} ms", value < 0.6 * widest  # else it would leave the panel
        offset, align = ((4, -10), "left") if beside else ((-4, -10), "right")
        axes.annotate(told, (value, share), textcoords="offset points", xytext=offset, ha=align)
    if bound is not None:
        axes.axvline(bound * 1000, color="tab:red", linestyle="--", label=f"bound {bound * 1000:g} ms")
        axes.legend(loc="lower right")
    axes.set(
        title=title,
        xlabel="milliseconds",
        ylabel="share of turns that took at most so long",
        ylim=(0, 1.02),
        xlim=(0, None),
    )


def over_time(axes: Any, turns: Sequence[TurnRecord], began: float) -> None:
    """Draw the tokens a second; each turn's are spread evenly between its first token and its end."""
    seconds = max((turn.started - began + (turn.total or 0) for turn in turns), default=1.0)
    width = max(seconds / 60, 0.1)
    bins = [0.0] * (int(seconds / width) + 1)
    for turn in turns:
        first = turn.started - began + (turn.ttft or 0)
        last = turn.started - began + (turn.total or 0)
        for index in range(turn.tokens):
            moment = first + (last - first) * index / max(1, turn.tokens - 1)
            bins[min(len(bins) - 1, int(moment / width))] += 1 / width
    axes.step([index * width for index in range(len(bins))], bins, where="post")
    axes.set(
        title="Tokens over time", xlabel="seconds since the first turn began", ylabel="tokens a second", ylim=(0, None)
    )

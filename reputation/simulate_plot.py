"""Draws a simulation: cap and volume, score, weight over time. Needs matplotlib (not in production)."""

from __future__ import annotations

from pathlib import Path

from reputation.simulate import Result, daily


class NoPlots(Exception):
    """matplotlib is not installed."""


def draw(result: Result, file: Path) -> None:
    """Write a PNG or SVG, by the file's suffix. Raises :class:`NoPlots`."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise NoPlots("matplotlib is not installed: pip install matplotlib") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    # the same scenario gives the same file, byte for byte
    mpl.rcParams["svg.hashsalt"] = "mailweir"
    days = daily(result)
    pairs = sorted({(row["source"], row["provider"]) for row in days})
    figure, (volume, score, weight) = plt.subplots(
        3, 1, sharex=True, figsize=(9, 8), gridspec_kw={"height_ratios": [2, 1, 1]}
    )
    for number, (source, provider) in enumerate(pairs):
        color, label = f"C{number}", f"{source} at {provider}"
        mine = [row for row in days if (row["source"], row["provider"]) == (source, provider)]
        volume.plot([r["day"] for r in mine], [r["volume"] for r in mine], color=color, label=label)
        capped = [(r["day"], r["cap"]) for r in mine if r["cap"] is not None]
        if capped:
            volume.step(
                *zip(*capped, strict=True), where="mid", color=color, ls="--", label=f"cap, {label}"
            )
        hours = [r for r in result.rows if (r.source, r.provider) == (source, provider)]
        score.plot([r.day for r in hours], [r.score for r in hours], color=color)
        weight.plot([r.day for r in hours], [r.weight for r in hours], color=color)
    volume.set(ylabel="jobs a day", title=result.name)
    volume.legend(fontsize="small")
    score.set(ylabel="score", ylim=(0, 1.05))
    score.axhline(0.7, color="grey", lw=0.5)
    weight.set(ylabel="weight", xlabel="day")
    figure.tight_layout()
    metadata = {"Date": None} if file.suffix == ".svg" else None
    figure.savefig(file, metadata=metadata)
    plt.close(figure)

"""The figures of the examples, saved to `examples/figures/`."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

FIGURES = Path(__file__).parent / "figures"


def save(figure, name):
    FIGURES.mkdir(exist_ok=True)
    figure.savefig(FIGURES / f"{name}.png", dpi=110)
    print(f"figure: examples/figures/{name}.png")
    return figure


def smooth(values, window=100):
    window = min(window, len(values))
    return np.convolve(values, np.ones(window) / window, "valid")


def decorate(ax, title, xlabel, ylabel=""):
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8)


def gamma(z, losses, minus_log_evidence, c, densities, prior_predictive, posterior_predictive):
    figure, axes = plt.subplots(2, 3, figsize=(14, 7.5), layout="constrained")
    bins = np.linspace(0, 12, 60)
    axes[0, 0].hist(np.asarray(z), bins, color="grey", alpha=0.6)
    decorate(axes[0, 0], "Data: 1,000 draws of Gamma(2, 1)", "z", "count")

    for name, loss in losses.items():
        axes[0, 1].plot(loss, lw=0.7, label=name)
    axes[0, 1].axhline(minus_log_evidence, color="black", ls="--", lw=1, label="-log evidence")
    decorate(axes[0, 1], "Loss", "step", "-ELBO (nats)")

    for name, loss in losses.items():
        gap = smooth(loss, 50) - minus_log_evidence
        axes[0, 2].plot(np.maximum(gap, 1e-3), lw=1, label=name)
    axes[0, 2].set_yscale("log")
    decorate(axes[0, 2], "Distance to the evidence, mean of 50 steps", "step", "nats")

    for name, density in densities.items():
        style = {"color": "black", "ls": "--"} if name == "exact" else {}
        axes[1, 0].plot(c, density, label=name, **style)
    axes[1, 0].set_xlim(1.8, 2.2)
    decorate(axes[1, 0], "Posterior of the concentration", "c", "density")

    panels = {"Prior predictive": prior_predictive, "Posterior predictive": posterior_predictive}
    for ax, (title, draws) in zip(axes[1, 1:], panels.items()):
        for draw in np.asarray(draws)[:60]:
            ax.hist(draw, bins, histtype="step", color="C0", alpha=0.15)
        ax.hist(np.asarray(z), bins, histtype="step", color="black", lw=1.5, label="data")
        ax.set_ylim(0, 140)
        decorate(ax, title, "z", "count")
    return save(figure, "gamma")


def moons_data(x, y):
    figure, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    _scatter(ax, x, y)
    decorate(ax, "Training data", "x1", "x2")
    return save(figure, "moons_data")


def _scatter(ax, x, y):
    for label in (0, 1):
        ax.scatter(*np.asarray(x)[np.asarray(y) == label].T, s=6, alpha=0.6, label=f"class {label}")


def moons_losses(train, validation, simple, sizes):
    figure, axes = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    for name, loss, size in (("train", train, sizes[0]), ("validation", validation, sizes[1])):
        axes[0].plot(smooth(loss, 20), lw=0.8, label=name)
        axes[1].plot(smooth(loss, 20) / size, lw=0.8, label=name)
    decorate(axes[0], "Deck recipe", "step", "-ELBO (nats)")
    decorate(axes[1], "Deck recipe, per row", "step", "-ELBO / rows")
    axes[2].plot(simple, lw=0.3, alpha=0.5)
    axes[2].plot(
        np.arange(len(smooth(simple))) + 100,
        smooth(simple),
        lw=1,
        color="C0",
        label="mean of 100 steps",
    )
    decorate(axes[2], "Simple recipe", "step", "-ELBO (nats)")
    for ax, top in zip(axes, (600, 0.8, 600)):
        ax.set_ylim(0 if ax is not axes[2] else 150, top)
    return save(figure, "moons_losses")


def moons_auc(scores):
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, draws in scores.items():
        ax.hist(draws, 40, alpha=0.6, density=True, label=name)
    decorate(ax, "AUC over posterior draws", "AUC", "density")
    return save(figure, "moons_auc")


def moons_grid(name, axis, panels, x, y):
    """Panels {title: (values on the grid, colour map)} with the data on top."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4.2), layout="constrained", squeeze=False
    )
    for ax, (title, (values, colours)) in zip(axes[0], panels.items()):
        mesh = ax.pcolormesh(
            axis,
            axis,
            np.asarray(values).reshape(len(axis), -1),
            cmap=colours,
            vmin=0,
            vmax=1,
            shading="auto",
        )
        figure.colorbar(mesh, ax=ax)
        ax.scatter(*np.asarray(x).T, c=np.asarray(y), s=3, cmap="coolwarm", alpha=0.5)
        decorate(ax, title, "x1", "x2")
    return save(figure, name)

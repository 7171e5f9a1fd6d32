"""The figures of the examples, saved to `examples/figures/`; `--quick` only draws them."""

import io
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

FIGURES = Path(__file__).parent / "figures"


def save(figure, name):
    if "--quick" in sys.argv:
        figure.savefig(io.BytesIO())
        return figure
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


_BINS = np.linspace(0, 12, 60)


def gamma(z, losses, minus_log_evidence, c, densities, prior_predictive, posterior_predictive):
    figure, (top, bottom) = plt.subplots(2, 3, figsize=(11.3, 5.9), layout="constrained")
    top[0].hist(np.asarray(z), _BINS, color="grey", alpha=0.6)
    decorate(top[0], "Data: 1,000 draws of Gamma(2, 1)", "z", "count")
    _losses(top[1], losses, minus_log_evidence)
    _distances(top[2], losses, minus_log_evidence)
    _densities(bottom[0], c, densities)
    _predictive(bottom[1], "Prior predictive", prior_predictive, z)
    _predictive(bottom[2], "Posterior predictive", posterior_predictive, z)
    return save(figure, "gamma")


def _losses(ax, losses, minus_log_evidence):
    for name, loss in losses.items():
        ax.plot(loss, lw=0.7, label=name)
    ax.axhline(minus_log_evidence, color="black", ls="--", lw=1, label="-log evidence")
    decorate(ax, "Loss", "step", "-ELBO (nats)")


def _distances(ax, losses, minus_log_evidence):
    for name, loss in losses.items():
        gap = smooth(loss, 50) - minus_log_evidence
        ax.plot(np.maximum(gap, 1e-3), lw=1, label=name)
    ax.set_yscale("log")
    decorate(ax, "Distance to the evidence", "step", "nats, mean of 50 steps")


def _densities(ax, c, densities):
    for name, density in densities.items():
        style = {"color": "black", "ls": "--"} if name == "exact" else {}
        ax.plot(c, density, label=name, **style)
    ax.set_xlim(1.8, 2.2)
    decorate(ax, "Posterior of the concentration", "c", "density")


def _predictive(ax, title, draws, z):
    for draw in np.asarray(draws)[:60]:
        ax.hist(draw, _BINS, histtype="step", color="C0", alpha=0.15)
    ax.hist(np.asarray(z), _BINS, histtype="step", color="black", lw=1.5, label="data")
    ax.set_ylim(0, 140)
    decorate(ax, title, "z", "count")


def moons_data(x, y):
    figure, ax = plt.subplots(figsize=(5, 4), layout="constrained")
    _scatter(ax, x, y)
    decorate(ax, "Training data", "x1", "x2")
    return save(figure, "moons_data")


def _scatter(ax, x, y):
    for label in (0, 1):
        x1, x2 = np.asarray(x)[np.asarray(y) == label].T
        ax.scatter(x1, x2, s=6, alpha=0.6, label=f"class {label}")


def moons_losses(train, validation, simple, sizes):
    figure, (deck, per_row, simple_recipe) = plt.subplots(
        1, 3, figsize=(14, 4), layout="constrained"
    )
    for name, loss, size in zip(("train", "validation"), (train, validation), sizes):
        mean = smooth(loss, 20)
        deck.plot(mean, lw=0.8, label=name)
        per_row.plot(mean / size, lw=0.8, label=name)
    deck.set_ylim(0, 600)
    decorate(deck, "Deck recipe", "step", "-ELBO (nats)")
    per_row.set_ylim(0, 0.8)
    decorate(per_row, "Deck recipe, per row", "step", "-ELBO / rows")
    simple_recipe.plot(simple, lw=0.3, alpha=0.5)
    mean = smooth(simple)
    steps = np.arange(len(mean)) + 100
    simple_recipe.plot(steps, mean, lw=1, color="C0", label="mean of 100 steps")
    simple_recipe.set_ylim(150, 600)
    decorate(simple_recipe, "Simple recipe", "step", "-ELBO (nats)")
    return save(figure, "moons_losses")


def moons_auc(scores):
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, draws in scores.items():
        ax.hist(draws, 40, alpha=0.6, density=True, label=name)
    decorate(ax, "AUC over posterior draws", "AUC", "density")
    return save(figure, "moons_auc")


def moons_grid(name, axis, panels, x, y):
    """Panels {title: (values on the grid, colour map)} with the data on top."""
    num = len(panels)
    size = (5.2 * num, 4.2)
    figure, axes = plt.subplots(1, num, figsize=size, layout="constrained", squeeze=False)
    x1, x2 = np.asarray(x).T
    for ax, (title, (values, colours)) in zip(axes[0], panels.items()):
        height = np.asarray(values).reshape(len(axis), -1)
        mesh = ax.pcolormesh(axis, axis, height, cmap=colours, vmin=0, vmax=1, shading="auto")
        figure.colorbar(mesh, ax=ax)
        ax.scatter(x1, x2, c=np.asarray(y), s=3, cmap="coolwarm", alpha=0.5)
        decorate(ax, title, "x1", "x2")
    return save(figure, name)

"""A mixture with its labels summed out: do petal lengths alone tell three species of iris apart?

    label_i ~ Categorical(weight),   log x_i ~ Normal(center[label_i], spread[label_i])
    weight ~ Dirichlet(2, 2, 2),   center_k ~ Normal(1.3, 0.7) in increasing order
    spread_k ~ LogNormal(log 0.1, 0.5), one for each species or one for all

The labels are finite, so that each row is a sum over three of them, and gradients do the rest. The
data are the 150 petal lengths of Fisher (1936), in scikit-learn; the fit does not see the species.
"""

# %% Data.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import EFFORT, QUICK, compare, timed
from plotting import save
from sklearn.datasets import load_iris

import minisvi

iris = load_iris()
length, species = iris.data[:, 2], iris.target
x = np.log(length).astype(np.float32)


# %% The model, and the same with its labels summed out.
def prior(theta):
    return {
        "weight": dist.Dirichlet(jnp.full(3, 2.0)),
        "center": dist.Normal(1.3, 0.7),
        "spread": dist.LogNormal(jnp.log(0.1), 0.5),
        "label": dist.Categorical(probs=theta["weight"]),
    }


def log_likelihood(theta, x):
    spread = jnp.broadcast_to(theta["spread"], 3)
    return dist.Normal(theta["center"][theta["label"]], spread[theta["label"]]).log_prob(x)


def labelled(centers, spreads):
    latents = {"weight": minisvi.simplex(3), "center": centers, "spread": spreads}
    latents["label"] = minisvi.local(minisvi.finite(3))
    return minisvi.Model(latents, prior=prior, log_likelihood=log_likelihood)


def run(model, **options):
    model = minisvi.sum_out(model, "label")
    return minisvi.fit(jax.random.key(0), model, x, progress_bar=False, **options)


# %% A spread for each species is not trusted: wide components take the place of narrow ones. Labels
# left free are there in all six orders, and the verdict says so.
if not QUICK:
    own = run(labelled(minisvi.ordered(3), minisvi.positive(3)))
    print(f"{'three spreads':22}{own.verdict.level}: {own.verdict.reason}\n")
    print(run(labelled(minisvi.real(3), minisvi.positive())), "\n")

# %% One relative spread for all, and more draws. The warning of `center` is of log 3!, a constant.
options = EFFORT or {"num_draws": 100_000}
ordered = labelled(minisvi.ordered(3), minisvi.positive())
fit, seconds = timed(lambda: run(ordered, **options))
compare(fit, seconds, jax.random.key(1))
print(fit.summary())


# %% The probability of each flower's label, averaged over the posterior.
def label_probability(theta):
    _, log_p = minisvi.log_conditional(ordered, "label", theta, x)
    return jnp.exp(log_p)


draws = fit.draws.resample(jax.random.key(2), 2000)
probability = np.asarray(draws.map(label_probability).mean())
agree = (probability.argmax(axis=1) == species).mean()
unsure = (probability.max(axis=1) < 0.9).sum()
print(f"the likeliest label is the species of {agree:.0%} of the flowers")
print(f"no label has probability 0.9 for {unsure} of {len(x)} flowers")


# %% A posterior predictive check: quantiles of new samples of 150 flowers.
def of_length(theta):
    components = dist.LogNormal(theta["center"], theta["spread"])
    return dist.MixtureSameFamily(dist.Categorical(theta["weight"]), components)


def new_lengths(key, theta, x):
    return of_length(theta).sample(key, x.shape)


replicated = np.asarray(draws.predictive(jax.random.key(3), new_lengths, 1000, x))
for p in (0.1, 0.3, 0.5, 0.9):
    low, high = np.quantile(np.quantile(replicated, p, axis=1), [0.05, 0.95])
    print(f"quantile {p}: {np.quantile(length, p):.2f} cm, {low:.2f} to {high:.2f} replicated")

# %% The picture: the density over the flowers, and the probability of each label.
grid = np.linspace(0.7, 7.5, 400, dtype=np.float32)
density = draws.map(lambda theta: jnp.exp(of_length(theta).log_prob(grid)))
low, middle, high = np.quantile(density.theta, [0.05, 0.5, 0.95], axis=0)
figure, (top, bottom) = plt.subplots(
    2, 1, figsize=(7, 6), height_ratios=(2, 1), sharex=True, layout="constrained"
)
names = list(iris.target_names)
heights = [np.full(50, 1 / (0.2 * len(x)))] * 3
seen = [length[species == k] for k in range(3)]
top.hist(seen, np.arange(0.7, 7.6, 0.2), weights=heights, stacked=True, alpha=0.5, label=names)
top.fill_between(grid, low, high, color="black", alpha=0.2)
top.plot(grid, middle, color="black", label="posterior median and 90 % band")
top.set(
    ylabel="density, 1/cm", title="150 irises, coloured by the species, which the fit did not see"
)
top.legend(frameon=False)
bottom.plot(length, probability, ".")
bottom.set(xlabel="petal length, cm", ylabel="P(label | length)")
save(figure, "mixture")

# %% For your own data: `finite(K)` and `ordered(K)` for K components, and priors in x's units.

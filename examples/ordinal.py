"""Ordinal regression: what makes tenants content with their homes?

    P(y_i <= k) = logistic(c_k - x_i b),   k = low, medium,   c_low < c_medium
    b_j ~ Normal(0, 1),   c_low ~ Normal(0, 1.5),   c_medium - c_low ~ LogNormal(0, 1.5)

Answers on a scale of three steps are ordered, but nobody knows how far apart the steps lie: the
cut points c are latents. The data are the satisfaction of 1,681 tenants in Copenhagen (Madsen
1976), by their influence on the management, the type of their home and contact to neighbours.
"""

# %% Data: a row for each kind of tenant, and the number of those who answer low, medium, high.
import jax
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from beside_nuts import EFFORT, compare, timed
from plotting import save

import minisvi

ANSWERS = """
21 21 28  34 22 36  10 11 36    61 23 17  43 35 40  26 18 54    13 9 10  8 8 12  6 7 9
18 6 7  15 13 13  7 5 11        14 19 37  17 23 40  3 5 23      78 46 43  48 45 86  15 25 62
20 23 20  10 22 24  7 10 21     57 23 13  31 21 13  5 6 13"""
answers = np.array(ANSWERS.split(), float).reshape(-1, 3)
contact, home, influence = np.indices((2, 4, 3)).reshape(3, -1)
predictors = {
    "medium influence": influence == 1,
    "high influence": influence == 2,
    "apartment": home == 1,
    "atrium house": home == 2,
    "terraced house": home == 3,
    "high contact": contact == 1,
}
x = np.stack(list(predictors.values()), axis=1).astype(float)


# %% The model. The answers of one kind of tenant are multinomial.
def prior(theta):
    free = dist.Normal(0.0, 1.5).expand([2]).to_event(1)
    cuts = dist.TransformedDistribution(free, dist.transforms.OrderedTransform())
    return {"b": dist.Normal(0.0, 1.0), "cuts": cuts}


def probabilities(theta, x):
    return dist.OrderedLogistic(x @ theta["b"], theta["cuts"]).probs


def log_likelihood(theta, x, answers):
    return dist.Multinomial(answers.sum(axis=1), probs=probabilities(theta, x)).log_prob(answers)


latents = {"b": minisvi.real(len(predictors)), "cuts": minisvi.ordered(2)}
model = minisvi.Model(latents, log_likelihood=log_likelihood, prior=prior)

# %% The fit and its verdict, with NUTS beside it.
fit, seconds = timed(
    lambda: minisvi.fit(jax.random.key(0), model, x, answers, progress_bar=False, **EFFORT)
)
compare(fit, seconds, jax.random.key(1))

# %% The answer: log odds of a better answer, against low influence and contact in a tower block.
print(fit.summary())

# %% A posterior predictive check of the shares, and of what the model takes for granted: that a
# predictor moves both cut points alike. The statistic is Pearson's chi-square.
draws = fit.draws.resample(jax.random.key(2), 2000)
expected = np.asarray(jax.vmap(lambda theta: probabilities(theta, x))(draws.theta), float)
expected /= expected.sum(axis=-1, keepdims=True)
total = answers.sum(axis=1)
replicated = np.random.default_rng(3).multinomial(total.astype(int), expected)


def chi_square(counts):
    mean = total[:, None] * expected
    return ((counts - mean) ** 2 / mean).sum(axis=(1, 2))


p = np.mean(chi_square(replicated) >= chi_square(answers))
print(f"replicated tables that fit worse than the one seen: {p:.0%}")
low, high = np.quantile(replicated / total[:, None], [0.05, 0.95], axis=0)
shares = answers / total[:, None]
inside = (low <= shares) & (shares <= high)
print(f"shares inside their 90 % interval: {inside.mean():.0%}")

# %% The picture: the coefficients, and the shares of each kind of tenant.
figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.5), layout="constrained")
row = np.arange(len(predictors))
b = np.asarray(draws.theta["b"])
left.hlines(row, *np.quantile(b, [0.05, 0.95], axis=0), color="C0", lw=4, alpha=0.4)
left.plot(b.mean(axis=0), row, "o", color="C0")
left.axvline(0.0, color="grey", lw=1, ls=":")
left.set(yticks=row, yticklabels=list(predictors), xlabel="log odds of a better answer")
left.invert_yaxis()
left.set_title("What makes tenants content: mean, 90 % interval")
order = np.argsort(expected.mean(axis=0)[:, 2])
kind = np.arange(len(order))
for k, name, colour, place in [(0, "low", "C1", kind - 0.15), (2, "high", "C0", kind + 0.15)]:
    right.vlines(place, low[order, k], high[order, k], color=colour, lw=4, alpha=0.35)
    right.plot(place, shares[order, k], "o", color=colour, ms=4, label=f"{name}: seen")
right.set(ylim=(0, 1), xticks=[], ylabel="share of the answers")
right.set(xlabel="24 kinds of tenant, from the least to the most content")
right.set_title("Answers seen, and their 90 % predictive intervals")
right.legend(loc="upper left", ncols=2)
save(figure, "ordinal")

# %% For your own data: with one answer a row take `dist.OrderedLogistic(...).log_prob(y)`, with y
# = 0, 1, 2, ..., as the likelihood; for K steps there are K - 1 cut points, `ordered(K - 1)`.

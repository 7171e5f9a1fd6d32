"""A Bayesian neural network on two moons: the talk's recipe with early stopping, and a simple one.

The example of the talk "Introduction to Stochastic Variational Inference with NumPyro" (Juan Orduz,
PyData Berlin 2025). Run `python examples/bnn_moons.py`; `--quick` takes few steps. Figures go to
`examples/figures/`.
"""

# %% Data: 980 rows to train, 420 to validate, 600 to test.
import argparse

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plotting
from flax import nnx
from sklearn.datasets import make_moons
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from minisvi import SVI, Model, Posterior, bnn, custom, mean_field

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="few steps and draws, to see that it runs")
quick = parser.parse_known_args()[0].quick
max_steps, simple_steps, num_draws = (300, 500, 100) if quick else (8000, 10_000, 2000)

x, y = make_moons(2000, noise=0.25, random_state=42)
x, x_test, y, y_test = train_test_split(x, y, test_size=0.3, random_state=42)
x, x_val, y, y_val = train_test_split(x, y, test_size=0.3, random_state=42)
train, validation, test = (x, y), (x_val, y_val), (x_test, y_test)
plotting.moons_data(*train)


# %% Network: 2-4-3-1 with tanh; the last layer gives logits.
class Net(nnx.Module):
    def __init__(self, rngs):
        sizes = [(2, 4), (4, 3), (3, 1)]
        self.layers = nnx.List([nnx.Linear(m, n, rngs=rngs) for m, n in sizes])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = jnp.tanh(layer(x))
        return self.layers[-1](x)[:, 0]


class SoftLaplace:
    """log p(x) = log(2 / pi) - log s - log(e^t + e^-t), t = (x - m) / s."""

    def __init__(self, loc, scale):
        self.loc, self.scale = loc, scale

    def log_prob(self, x):
        t = (x - self.loc) / self.scale
        return jnp.log(2 / jnp.pi) - jnp.log(self.scale) - jnp.logaddexp(t, -t)

    def sample(self, *, seed, sample_shape=()):
        shape = (*sample_shape, *jnp.shape(self.loc))
        u = jax.random.uniform(seed, shape, minval=jnp.finfo(float).tiny)
        return self.loc + self.scale * jnp.log(jnp.tan(jnp.pi * u / 2))

    def sample_and_log_prob(self, *, seed):
        x = self.sample(seed=seed)
        return x, self.log_prob(x)


# %% Model: biases ~ Normal(0, 1), kernels ~ SoftLaplace(0, 1), y ~ Bernoulli(net(x)).
def prior(path, shape):
    return distrax.Normal(0.0, 1.0) if path.endswith("bias") else SoftLaplace(0.0, 1.0)


net = bnn.from_nnx(Net(nnx.Rngs(0)), prior)


def log_likelihood(w, x, y):
    logits = net.apply(w, x)
    return y * logits - jax.nn.softplus(logits)


model = Model(net.latents, log_prior=net.log_prior, log_likelihood=log_likelihood)


# %% Recipe 1, the talk's: a guide of its own, a one-cycle rate, and a loop that may stop early.
def start(path, w):
    """loc and scale ~ uniform(0, 1), each array with the talk's seed."""
    layer = path[1].key
    seed = 42 if path[2].key == "bias" else 1
    key, loc_key = jax.random.split(jax.random.PRNGKey(seed + layer))
    _, scale_key = jax.random.split(key)
    return {
        "loc": jax.random.uniform(loc_key, w.shape),
        "log_scale": jnp.log(jax.random.uniform(scale_key, w.shape)),
    }


def family(params, *_):
    def part(path, _, p):
        kind = distrax.Normal if path[2].key == "bias" else SoftLaplace
        scale = jnp.exp(p["log_scale"])
        return kind(p["loc"], scale)

    return jax.tree_util.tree_map_with_path(part, net.initial, params)


def init(key):
    return jax.tree_util.tree_map_with_path(start, net.initial)


guide = custom(init, family)
rate = optax.linear_onecycle_schedule(
    8000, peak_value=0.008, pct_start=0.2, pct_final=0.8, div_factor=3, final_div_factor=4
)
plateau = optax.contrib.reduce_on_plateau(factor=0.1, patience=10, accumulation_size=100)
svi = SVI(model, guide, optax.chain(optax.adam(rate), plateau))
update = jax.jit(svi.update)
evaluate = jax.jit(svi.evaluate)

state = svi.init(jax.random.PRNGKey(0), *train)
waited = 0
train_loss = []
validation_loss = []
for _ in range(max_steps):
    state, info = update(state, *train)
    train_loss.append(-info.elbo)
    validation_loss.append(-evaluate(state, *validation))
    worse = validation_loss[-1] / len(y_val) > train_loss[-1] / len(y)
    waited = waited + 1 if worse else 0
    if waited == 200:
        break
train_loss = np.array(train_loss)
validation_loss = np.array(validation_loss)

# %% Recipe 2, the simple one: mean field, Adam at a fixed rate.
simple_guide = mean_field(model.latents)
simple_svi = SVI(model, simple_guide, optax.adam(0.01))
simple = simple_svi.run(jax.random.key(1), simple_steps, *train)
plotting.moons_losses(train_loss, validation_loss, -simple.elbo, (len(y), len(y_val)))


# %% What the two posteriors predict.
def probability(key, w, x):
    return jax.nn.sigmoid(net.apply(w, x))


posteriors = {
    "deck recipe": Posterior(model, guide, state.params),
    "simple recipe": Posterior(model, simple_guide, simple.params),
}
steps = {"deck recipe": len(train_loss), "simple recipe": simple_steps}
auc = {}
print(f"{'on the test rows':32}{'AUC of draws':>16}{'AUC of mean p':>15}{'accuracy':>10}{'NLL':>8}")
for name, posterior in posteriors.items():
    p = posterior.predictive(jax.random.key(2), probability, num_draws, x_test, batch_size=500)
    auc[name] = np.array([roc_auc_score(y_test, draw) for draw in p])
    p = p.mean(axis=0)
    nll = -np.mean(np.where(y_test == 1, np.log(p), np.log1p(-p)))
    accuracy = np.mean((p > 0.5) == y_test)
    label = f"{name}, {steps[name]:,} steps"
    of_draws = f"{auc[name].mean():.3f} +- {auc[name].std():.3f}"
    of_mean = roc_auc_score(y_test, p)
    print(f"{label:32}{of_draws:>16}{of_mean:15.3f}{accuracy:10.3f}{nll:8.4f}")
print(f"{'published, 3,309 steps':32}{'0.981 +- 0.003':>16}{0.983:15.3f}{0.925:10.3f}{0.1758:8.4f}")
plotting.moons_auc(auc)


# %% What the published rule measures. It compares -ELBO / rows in validation and training. Both
# hold the same KL, divided by 420 and by 980: that is why it fires, while the held-out rows
# themselves are predicted as well as the others or better.
def nll_per_row(posterior, x, y):
    def fn(key, w, x, y):
        return -jnp.mean(log_likelihood(w, x, y))

    return posterior.predictive(jax.random.key(3), fn, num_draws, x, y).mean()


fitted = posteriors["deck recipe"]
nll_train = nll_per_row(fitted, *train)
nll_val = nll_per_row(fitted, *validation)
q = guide.distribution(state.params)


def log_ratio(key):
    w, log_q = q.sample_and_log_prob(seed=key)
    return log_q - net.log_prior(w)


kl_keys = jax.random.split(jax.random.key(4), num_draws)
kl = jax.vmap(log_ratio)(kl_keys).mean()
kl_train = kl / len(y)
kl_val = kl / len(y_val)
print(
    f"\nThe published rule stopped at step {len(train_loss):,} here "
    "(3,309 in the talk, from other draws). It measures"
)
print(
    f"the KL of {kl:.1f} nats, which it divides by {len(y_val)} rows in validation "
    f"and by {len(y)} in training:"
)
print(f"{'':14}-ELBO a row = NLL a row + KL a row")
print(f"  train       {nll_train + kl_train:8.3f}       {nll_train:8.3f}    {kl_train:8.3f}")
print(f"  validation  {nll_val + kl_val:8.3f}       {nll_val:8.3f}    {kl_val:8.3f}")
comparison = "no worse" if nll_val <= nll_train else "worse"
print(f"The held-out rows are predicted {comparison} than the training rows.")
print(
    "With the KL over the training size, as it should be, "
    f"the validation score is {nll_val + kl_train:.3f}."
)

# %% Prior and posterior over the plane: the mean of p and the width of its 94 % interval.
axis = np.linspace(-5, 5, 100)
grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
prior_draws = net.sample_prior(jax.random.key(5), num_draws // 4)
prior_p = jax.vmap(lambda w: probability(None, w, grid))(prior_draws)
panels = {
    "Prior predictive mean": (prior_p.mean(0), "viridis"),
    "One draw of the prior": (prior_p[0], "viridis"),
}
plotting.moons_grid("moons_prior", axis, panels, *train)


def hdi_width(draws, probability=0.94):
    """Width of the shortest interval that holds this share of the draws."""
    ordered = np.sort(draws, axis=0)
    num_inside = int(np.ceil(probability * len(draws)))
    num_intervals = len(draws) - num_inside + 1
    widths = ordered[num_inside - 1 :] - ordered[:num_intervals]
    return np.min(widths, axis=0)


for name, posterior in posteriors.items():
    p = posterior.predictive(jax.random.key(6), probability, num_draws, grid, batch_size=250)
    panels = {
        f"{name}: mean": (p.mean(0), "viridis"),
        f"{name}: width of the 94 % HDI": (hdi_width(p), "magma"),
    }
    recipe, _ = name.split()
    plotting.moons_grid(f"moons_{recipe}", axis, panels, *train)

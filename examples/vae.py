"""A variational autoencoder on 8 x 8 digits: local latents from an encoder, and a decoder whose
weights are learnt.

Run `python examples/vae.py`; `--quick` takes few steps. The figure goes to `examples/figures/`.
"""

# %% Data: scikit-learn's 1,797 digits of 64 pixels, ink or none; 360 to test.
import argparse

import distrax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import plotting
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from minisvi import (
    ELBO,
    SVI,
    ImportanceWeighted,
    Minibatches,
    Model,
    Posterior,
    amortised,
    bnn,
    delta,
    local,
    mean_field,
    product,
    real,
)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
quick = parser.parse_known_args()[0].quick
num_steps = 300 if quick else 2000

pixels, digits = load_digits(return_X_y=True)
images = (pixels > 7).astype("float32")
x, x_test, _, digits_test = train_test_split(images, digits, test_size=360, random_state=42)

# %% Networks: the decoder gives a logit for each pixel, the encoder the location and log scale of
# each z.
DIM = 2
HIDDEN = 128
rngs = nnx.Rngs(0)


def mlp(num_inputs, num_outputs):
    first = nnx.Linear(num_inputs, HIDDEN, rngs=rngs)
    second = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
    last = nnx.Linear(HIDDEN, num_outputs, rngs=rngs)
    return nnx.Sequential(first, nnx.gelu, second, nnx.gelu, last)


decoder, decode = bnn.pure(mlp(DIM, 64))
encoder, encode = bnn.pure(mlp(64, 2 * DIM))

# %% Model: z_n ~ Normal(0, 1), x_n ~ Bernoulli(decode(z_n)); the decoder's weights have no prior.
decoder_latents = jax.tree.map(lambda w: real(w.shape), decoder)
latents = {"decoder": decoder_latents, "z": local(real(DIM))}


def prior(theta):
    return {"decoder": None, "z": distrax.Normal(0.0, 1.0)}


def log_likelihood(theta, x):
    logits = decode(theta["decoder"], theta["z"])
    return jnp.sum(x * logits - jax.nn.softplus(logits), axis=-1)


model = Model(latents, log_likelihood=log_likelihood, prior=prior)


# %% Guide: q(z_n | x_n) from the encoder, and a point for the decoder's weights.
def encode_rows(weights, x):
    loc, log_scale = jnp.split(encode(weights, x), 2, axis=-1)
    return {"loc": loc, "log_scale": log_scale}


z_given_x = amortised(mean_field(real(DIM)), lambda key: encoder, encode_rows)
guide = product({"decoder": delta(decoder_latents), "z": z_given_x})

# %% Fit: minibatches of 128 images, the KL to the prior in closed form.
optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
objective = ELBO(gradient="closed_form_kl")
svi = SVI(model, guide, optimizer, objective, Minibatches(128))
networks = {"decoder": decoder, "z": encoder}
fit = svi.run(jax.random.key(1), num_steps, x, params=networks)


# %% How well: the mean bound of an image, beside pixels drawn independently of each other.
def per_image(objective, x):
    keys = jax.random.split(jax.random.key(2), len(x))
    bound = lambda key, row: objective(key, model, guide, fit.params, row[None])
    bounds = jax.jit(jax.vmap(bound))(keys, jnp.asarray(x))
    return bounds.mean()


def by_independent_pixels(rows):
    ink = np.clip(x.mean(axis=0), 1e-3, 1 - 1e-3)
    log_p = rows @ np.log(ink) + (1 - rows) @ np.log1p(-ink)
    return np.mean(log_p)


num_particles = 100 if quick else 1000
bounds = {
    "ELBO": ELBO(num_particles),
    f"importance-weighted, K = {num_particles:,}": ImportanceWeighted(num_particles),
}
print(f"{'nats an image':30}{'train':>9}{'test':>9}")
train, test = by_independent_pixels(x), by_independent_pixels(x_test)
print(f"{'independent pixels':30}{train:9.2f}{test:9.2f}")
for name, objective in bounds.items():
    train, test = per_image(objective, x[:360]), per_image(objective, x_test)
    print(f"{name:30}{train:9.2f}{test:9.2f}")


# %% What it learnt: held-out digits and their reconstructions, the latent plane, and what it
# decodes to.
def ink_probability(key, theta):
    return theta["z"], jax.nn.sigmoid(decode(theta["decoder"], theta["z"]))


posterior = Posterior(model, guide, fit.params, (x_test,))
z_draws, ink_draws = posterior.predictive(jax.random.key(3), ink_probability, 100)
z = np.asarray(z_draws.mean(0))
reconstructed = ink_draws.mean(0)
# A grid whose cells have equal mass of the prior.
axis = jax.scipy.special.ndtri((jnp.arange(16) + 0.5) / 16)
grid = jnp.stack(jnp.meshgrid(axis, -axis), -1).reshape(-1, DIM)
decoded = jax.nn.sigmoid(decode(fit.params["decoder"], grid))


def mosaic(ax, images, columns, title):
    tiles = np.asarray(images).reshape(-1, columns, 8, 8)
    framed = np.pad(tiles, [(0, 0), (0, 0), (1, 1), (1, 1)])
    picture = framed.transpose(0, 2, 1, 3).reshape(-1, 10 * columns)
    ax.imshow(picture, cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title)


figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
above = x_test[:128].reshape(8, 16, 64)
below = reconstructed[:128].reshape(8, 16, 64)
pairs = np.stack([above, below], axis=1)
mosaic(left, pairs, 16, "Held-out digits, and below each its reconstruction")
for digit in range(10):
    z1, z2 = z[digits_test == digit].T
    middle.scatter(z1, z2, s=40, lw=0.3, color=f"C{digit}", marker=f"${digit}$")
middle.set_box_aspect(1)
plotting.decorate(middle, "Posterior means of z, held-out digits", "z1", "z2")
mosaic(right, decoded, 16, "Decoded from a grid of equal prior mass")
plotting.save(figure, "vae")

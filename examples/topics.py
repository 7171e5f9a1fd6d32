"""A topic model (latent Dirichlet allocation): which words go together in 2,000 documents?

    proportions_d ~ Dirichlet(0.3, ..., 0.3),   topic_k ~ Dirichlet(0.2, ..., 0.2)
    word_dn ~ Categorical(sum_k proportions_dk topic_k)

The topic of each word is summed out: the sum over k is all that is left of it. The proportions of a
document are local latents, and an encoder makes their guide from its counts, so that new documents
need no new fit. The documents are simulated, with the ten topics of Griffiths and Steyvers (2004):
words are the cells of a square, topics its rows and columns. NUTS is out of reach: 18,240 latents.
"""

# %% Data: the last 500 documents are new to the fit, and half of their words to the encoder.
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import optax
from beside_nuts import QUICK, timed
from flax import nnx
from plotting import save
from scipy.optimize import linear_sum_assignment

import minisvi
from minisvi import bnn

TOPICS, WORDS, LENGTH = 10, 25, 40
square = np.eye(WORDS).reshape(5, 5, WORDS)
TRUTH = np.concatenate([square.mean(axis=0), square.mean(axis=1)])
rng = np.random.default_rng(0)
chance = rng.dirichlet(np.full(TOPICS, 0.3), size=2500) @ TRUTH
counts, unseen = rng.multinomial(LENGTH, [chance, chance]).astype(np.float32)
train, new, unseen, chance = counts[:2000], counts[2000:], unseen[2000:], chance[2000:]


# %% The model.
def prior(theta):
    return {
        "topics": dist.Dirichlet(jnp.full(WORDS, 0.2)),
        "proportions": dist.Dirichlet(jnp.full(TOPICS, 0.3)),
    }


def word_chance(theta):
    return theta["proportions"] @ theta["topics"]


def log_likelihood(theta, counts):
    return jnp.sum(counts * jnp.log(word_chance(theta)), axis=-1)


topics = minisvi.simplex((TOPICS, WORDS))
proportions = minisvi.simplex(TOPICS)
latents = {"topics": topics, "proportions": minisvi.local(proportions)}
model = minisvi.Model(latents, prior=prior, log_likelihood=log_likelihood)

# %% The guide: independent normals, over u; those of the proportions come from the encoder.
rngs = nnx.Rngs(0)
layers = nnx.Linear(WORDS, 64, rngs=rngs), nnx.gelu, nnx.Linear(64, 2 * (TOPICS - 1), rngs=rngs)
weights, network = bnn.pure(nnx.Sequential(*layers))


def encode(weights, counts):
    loc, log_scale = jnp.split(network(weights, counts / LENGTH), 2, axis=-1)
    return {"loc": loc, "log_scale": log_scale}


of_proportions = minisvi.amortised(minisvi.mean_field(proportions), weights, encode)
guide = minisvi.product({"topics": minisvi.mean_field(topics), "proportions": of_proportions})

# %% The fit: SVI by minibatches of 200 documents.
num_steps = 100 if QUICK else 6000
optimizer = optax.adam(optax.cosine_decay_schedule(0.01, num_steps))
svi = minisvi.SVI(model, guide, optimizer, minisvi.ELBO(2), minisvi.Minibatches(200))
result, seconds = timed(lambda: svi.run(jax.random.key(0), num_steps, train, progress_bar=False))
print(f"seconds of SVI: {seconds:.1f}")


# %% The words that were not seen of new documents, of which the encoder sees the others.
def predicted_words(key, theta):
    return word_chance(theta)


posterior = minisvi.Posterior(model, guide, result.params, (new,))
predicted = posterior.predictive(jax.random.key(1), predicted_words, 200).mean(axis=0)
unigrams = train.mean(axis=0) / LENGTH
for name, p in {"unigrams": unigrams, "topic model": predicted, "truth": chance}.items():
    perplexity = np.exp(-np.sum(unseen * np.log(p)) / unseen.sum())
    print(f"perplexity of unseen words, {name:12}{perplexity:6.2f}")


# %% A posterior predictive check: how many different words documents have. It finds too many in
# the replicated ones, as each fitted topic keeps a few percent for the words of other topics.
def different_words(key, theta):
    k_proportions, k_words = jax.random.split(key)
    fresh = prior(theta)["proportions"].sample(k_proportions, (len(new),))
    words = dist.Multinomial(LENGTH, fresh @ theta["topics"]).sample(k_words)
    return jnp.mean(jnp.sum(words > 0, axis=-1))


replicated = posterior.predictive(jax.random.key(2), different_words, 10 if QUICK else 200)
low, high = np.quantile(replicated, [0.05, 0.95])
seen = (new > 0).sum(axis=1).mean()
print(f"different words a document: {seen:.2f} seen, {low:.2f} to {high:.2f} replicated")

# %% The picture: each topic beside the one that it is nearest to. Their order says nothing.
found = posterior.mean(jax.random.key(3), 100 if QUICK else 10_000)["topics"]
distance = np.abs(TRUTH[:, None] - found).sum(axis=-1) / 2
_, order = linear_sum_assignment(distance)
print("distance of each topic from its own:", np.diag(distance[:, order]).round(2))
figure, axes = plt.subplots(2, TOPICS, figsize=(10, 2.4), layout="constrained")
for row, name, images in zip(axes, ("truth", "posterior mean"), (TRUTH, found[order])):
    row[0].set_ylabel(name)
    for ax, image in zip(row, images):
        picture = ax.imshow(image.reshape(5, 5), vmin=0.0, vmax=0.2, cmap="Blues")
        ax.set(xticks=[], yticks=[])
figure.colorbar(picture, ax=axes, label="P(word | topic)", ticks=[0.0, 0.1, 0.2])
save(figure, "topics")

# %% For your own data: `counts` of any documents by words, `LENGTH` an array of their lengths.

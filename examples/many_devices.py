"""Many devices: logistic regression with its rows spread over all devices, of one process or of
several.

Run `python examples/many_devices.py` on what there is
(`XLA_FLAGS=--xla_force_host_platform_device_count=8` makes eight devices of a CPU), or one of two
processes, on one machine or two, as

    python examples/many_devices.py --coordinator localhost:1234 --num-processes 2 --process-id 0

and the same with `--process-id 1`. The posterior is the same on any of these, up to rounding.
`--quick` takes few steps; `--checkpoint-dir` lets the same command go on where it was killed.
"""

# %% Who takes part: this comes before anything that asks for a device.
import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm

import minisvi
from minisvi import ELBO, SVI, Minibatches, Model, Posterior, full_rank, real

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--quick", action="store_true", help="few steps, to see that it runs")
parser.add_argument("--coordinator", help="address of process 0, host:port; with several processes")
parser.add_argument("--num-processes", type=int, default=1)
parser.add_argument("--process-id", type=int, default=0)
parser.add_argument("--checkpoint-dir", help="that all processes can write to")
args, _ = parser.parse_known_args()
if args.coordinator:
    # A process that dies ends the others after so many seconds; the same command then goes on from
    # the checkpoint.
    jax.distributed.initialize(
        args.coordinator, args.num_processes, args.process_id, heartbeat_timeout_seconds=10
    )

# %% Data: each process brings its own rows, as many as any other.
# The devices are to divide the shards, and these the rows and the batch.
NUM_ROWS = 120_000
BATCH = 960
SHARDS = 24
true = np.array([1.0, -2.0, 0.5, 0.0])
rng = np.random.default_rng(0)
x = rng.normal(size=(NUM_ROWS, true.size))
probability = 1 / (1 + np.exp(-x @ true))
y = rng.random(NUM_ROWS) < probability
mine = np.arange(NUM_ROWS).reshape(args.num_processes, -1)[args.process_id]
mesh = minisvi.mesh(rows=jax.device_count())
data = minisvi.shard_rows(mesh, x[mine], y[mine])


# %% Model: w ~ Normal(0, 1), y_n ~ Bernoulli(sigmoid(x_n . w)).
def log_prior(theta):
    return jnp.sum(norm.logpdf(theta["w"]))


def log_likelihood(theta, x, y):
    logits = x @ theta["w"]
    return y * logits - jax.nn.softplus(logits)


model = Model({"w": real(true.size)}, log_prior=log_prior, log_likelihood=log_likelihood)
guide = full_rank(model.latents)

# %% The fit, as on one device: a batch takes as many rows from each shard, and only gradients leave
# a device.
num_steps = 500 if args.quick else 3000
optimizer = optax.adam(optax.cosine_decay_schedule(0.05, num_steps))
batches = Minibatches(BATCH, shards=SHARDS)
svi = SVI(model, guide, optimizer, ELBO(4, "sticking_the_landing"), batches)


@jax.jit
def elbo_of(params, *data):
    return ELBO(64)(jax.random.key(2), model, guide, params, *data)


with jax.set_mesh(mesh):
    result = svi.run(jax.random.key(1), num_steps, *data, checkpoint_dir=args.checkpoint_dir)
    elbo = elbo_of(result.params, *data)
    draws = Posterior(model, guide, result.params).sample(jax.random.key(3), 4000)["w"]

# %% All processes hold the result; one prints it.
if jax.process_index() == 0:
    num = jax.device_count()
    print(f"processes: {jax.process_count()}, devices: {num}, rows on each: {NUM_ROWS // num:,}")
    for value, mean, sd in zip(true, draws.mean(0), draws.std(0)):
        print(f"w = {value:4.1f}   posterior {mean:7.4f} +- {sd:.4f}")
    print(f"ELBO {elbo:.2f}")

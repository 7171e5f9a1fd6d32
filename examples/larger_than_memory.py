"""A fit to rows that are read from a Parquet file as they are needed, which outlives its process.

Run `python examples/larger_than_memory.py`; `--quick` takes fewer rows. Stop it with Ctrl-C or kill
it, and run it again with the same `--directory`: it goes on. The model is a linear regression, so
that the exact posterior is known.
"""

# %% Data: a Parquet file of row groups, each a batch. Rows were shuffled when it was written, so
# that any will do.
import argparse
import logging
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pyarrow as pa
import pyarrow.parquet as pq
from jax.scipy.stats import norm

from minisvi import ELBO, SVI, Model, Posterior, Stream, full_rank, laplace, real, whitened

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--quick", action="store_true", help="fewer rows, to see that it runs")
parser.add_argument(
    "--directory",
    type=Path,
    help="where the file and the checkpoints are kept; temporary by default",
)
args, _ = parser.parse_known_args()
logging.basicConfig(level=logging.INFO, format="%(message)s")
logging.getLogger("absl").setLevel(logging.WARNING)

NUM_GROUPS, ROWS = (50, 2000) if args.quick else (500, 10_000)
NOISE_SD = 0.5
PRIOR_SD = 10.0
TRUE = np.array([1.0, -2.0, 0.5])
directory = args.directory or Path(tempfile.mkdtemp())
directory.mkdir(parents=True, exist_ok=True)
file = directory / f"rows-{NUM_GROUPS}.parquet"
if not file.exists():
    rng = np.random.default_rng(0)
    schema = pa.schema([(name, pa.float32()) for name in ("x0", "x1", "x2", "y")])
    with pq.ParquetWriter(file, schema) as writer:
        for _ in range(NUM_GROUPS):
            x = rng.normal(size=(ROWS, 3)).astype(np.float32)
            y = x @ TRUE + NOISE_SD * rng.normal(size=ROWS)
            columns = [*x.T, y.astype(np.float32)]
            named = dict(zip(schema.names, columns))
            writer.write_table(pa.table(named, schema=schema))


# %% The source: batches from number `first` on, epoch after epoch, each in an order of its own.
def batches(first):
    with pq.ParquetFile(file) as groups:
        number = first
        while True:
            epoch, k = divmod(number, NUM_GROUPS)
            order = np.random.default_rng(epoch).permutation(NUM_GROUPS)
            group = groups.read_row_group(int(order[k]))
            *x, y = (column.to_numpy() for column in group.columns)
            yield np.stack(x, axis=1), y
            number += 1


# %% Model and fit. The likelihood of a batch counts N / b times; N is given, for no reader knows
# it.
def log_prior(theta):
    return jnp.sum(norm.logpdf(theta["w"], 0.0, PRIOR_SD))


def log_likelihood(theta, x, y):
    return norm.logpdf(y, x @ theta["w"], NOISE_SD)


num_steps = 2000
num_data = NUM_GROUPS * ROWS
model = Model({"w": real(3)}, log_prior=log_prior, log_likelihood=log_likelihood)
# One batch says where to start, and in which units: a posterior of N rows is about sqrt(b / N) as
# wide as one of b.
first = laplace(jax.random.key(0), model, *next(batches(0)))
guide = whitened(full_rank(model.latents, 1.0))
params = guide.init(jax.random.key(0), loc=first.loc, cov=first.cov * ROWS / num_data)
optimizer = optax.adam(optax.cosine_decay_schedule(0.1, num_steps))
svi = SVI(model, guide, optimizer, ELBO(8, "sticking_the_landing"))
stream = Stream(batches, num_data=num_data)
result = svi.run(
    jax.random.key(1),
    num_steps,
    stream,
    params=params,
    checkpoint_dir=directory / "checkpoints",
    checkpoint_every=5,
)

# %% Beside the exact posterior, Normal(loc, cov), from sums over one pass.
precision = np.eye(3) / PRIOR_SD**2
weighted = np.zeros(3)
for _, (x, y) in zip(range(NUM_GROUPS), batches(0)):
    x = x.astype(float)
    precision += x.T @ x / NOISE_SD**2
    weighted += x.T @ y / NOISE_SD**2
cov = np.linalg.inv(precision)
loc = cov @ weighted
sd = np.sqrt(np.diag(cov))
draws = Posterior(model, guide, result.params).sample(jax.random.key(2), 10_000)["w"]
print(f"{num_data:,} rows, {result.reason} after {result.state.step} steps")
print(f"{'':8}{'fit':>22}{'exact':>22}{'error, sd':>12}")
for i in range(3):
    mean = float(draws[:, i].mean())
    spread = float(draws[:, i].std())
    error = (mean - loc[i]) / sd[i]
    fitted = f"{mean:12.4f} +-{spread:7.5f}"
    exact = f"{loc[i]:12.4f} +-{sd[i]:7.5f}"
    print(f"w[{i}]    {fitted}{exact}{error:12.3f}")

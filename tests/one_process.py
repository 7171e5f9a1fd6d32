"""Run by `test_sharding` as one of several processes: fits of rows of which this one brings its
part.

`python one_process.py PORT NUM_PROCESSES PROCESS_ID DIRECTORY FIT STEPS ...`; process 0 writes
DIRECTORY/FIT.npz.
"""

import logging
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import NamedSharding, PartitionSpec
from problems import adam, conjugate_data, conjugate_model

import minisvi
from minisvi import ELBO, SVI, FullBatch, Minibatches, Stream, mean_field

NUM_ROWS, BATCH = 400, 40
ADAM = adam(0.05)
KEY = 20
STREAMS = ("stream", "short stream")


def svi_of(batches=FullBatch()):
    model = conjugate_model()
    return SVI(model, mean_field(model.latents), ADAM, ELBO(2), batches)


def fit_of(name, num_steps, rows, mesh=None, directory=None):
    """Of the rows of this process; of all, on one device, without a mesh."""
    options = {"num_restarts": 2} if name == "restarts" else {}
    svi = svi_of(
        Minibatches(BATCH, shards=4) if name in ("minibatches", "checkpoints") else FullBatch()
    )
    if name == "checkpoints" and mesh is not None:
        options = {"checkpoint_dir": directory / name, "checkpoint_every": 0.5}
    sharding = None if mesh is None else NamedSharding(mesh, PartitionSpec("rows"))
    if name == "unequal stream":
        data = (Stream([rows], NUM_ROWS, sharding=sharding),)
    elif name in STREAMS:
        num_batches = 50 + 10 * jax.process_index() if name == "short stream" else num_steps
        data = (Stream(partial(source, rows, num_batches), NUM_ROWS, sharding=sharding),)
    else:
        data = (rows,) if mesh is None else minisvi.shard_rows(mesh, rows)
    return svi.run(jax.random.key(KEY), num_steps, *data, progress_bar=False, **options)


def source(rows, num_batches, number):
    """Process 1 reads slowly, so that its blocks have fewer batches."""
    batches = rows.reshape(NUM_ROWS // BATCH, -1, rows.shape[1])
    for i in range(number, num_batches):
        time.sleep(0.003 * jax.process_index())
        yield batches[i % len(batches)]


def numbers(result):
    restarts = () if result.restarts is None else (result.restarts.elbo, result.restarts.best)
    return {
        str(i): value
        for i, value in enumerate((result.elbo, ravel_pytree(result.params)[0], *restarts))
    }


def my_rows(x, name):
    """Of a stream, this process's part of each batch."""
    if name == "restarts":  # the mesh has the processes on another axis: each has all rows
        return x
    if name.startswith("unequal"):
        return x[jax.process_index() :]
    parts = x.reshape(
        NUM_ROWS // BATCH if name in STREAMS else 1, jax.process_count(), -1, x.shape[1]
    )
    return parts[:, jax.process_index()].reshape(-1, x.shape[1])


def main(port, num_processes, process_id, directory, *fits):
    jax.distributed.initialize(
        f"localhost:{port}", int(num_processes), int(process_id), heartbeat_timeout_seconds=10
    )
    logging.basicConfig()
    logging.getLogger("minisvi").setLevel(logging.INFO)
    x, directory = np.asarray(conjugate_data(NUM_ROWS)), Path(directory)
    for name, num_steps in zip(fits[::2], fits[1::2]):
        restarts = {"restarts": 2} if name == "restarts" else {}
        mesh = minisvi.mesh(**restarts, rows=jax.device_count() // (2 if restarts else 1))
        with jax.set_mesh(mesh):
            result = fit_of(name, int(num_steps), my_rows(x, name), mesh, directory)
        whole = numbers(result)
        if jax.process_index() == 0:
            np.savez(directory / f"{name}.npz", **whole)


if __name__ == "__main__":
    main(*sys.argv[1:])

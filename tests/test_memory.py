"""What a fit leaves behind: nothing that `jax.clear_caches()` does not free."""

import subprocess
import sys

FITS = """
import gc, weakref
import jax, jax.numpy as jnp, optax
import minisvi

GUIDE, ADAM = minisvi.mean_field(minisvi.real()), optax.adam(0.1)


def fitted(loc):
    log_joint = lambda w: -0.5 * (w - loc) ** 2
    svi = minisvi.SVI(minisvi.Model(minisvi.real(), log_joint), GUIDE, ADAM)
    svi.run(jax.random.key(0), 2, progress_bar=False)
    return weakref.ref(log_joint)


models = [fitted(1.0), fitted(2.0)]
jax.clear_caches()
gc.collect()
print([model() for model in models])
"""


def test_a_models_function_is_freed_with_the_caches():
    # In a process of its own, for other tests would have to compile again.
    done = subprocess.run([sys.executable, "-c", FITS], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[None, None]", done.stderr

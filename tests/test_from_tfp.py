"""`examples/from_tfp.py`: joint distributions of TFP have their own density."""

import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import RTOL
from tensorflow_probability.substrates.jax import distributions as tfd
from tiers import standing_for

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from from_tfp import LOSS, from_tfp, regression

pytestmark = [
    pytest.mark.foreign,
    pytest.mark.filterwarnings("ignore:Explicitly requested dtype"),
]

BY_NAME = tfd.JointDistributionNamed(
    {
        "factor": tfd.CholeskyLKJ(3, 2.0),
        "shares": tfd.Dirichlet(jnp.ones(3)),
        "scale": tfd.HalfNormal(1.0),
        "slope": tfd.Sample(tfd.Normal(0.0, 1.0), 2),
        "y": lambda scale, slope: tfd.Independent(
            tfd.Normal(slope[0] + slope[1] * jnp.arange(4.0), scale), 1
        ),
    }
)
JOINTS = {"coroutine": (regression, LOSS), "named": (BY_NAME, jnp.arange(4.0))}


@pytest.mark.parametrize("name", standing_for(JOINTS, "coroutine"))
def test_the_density_is_tfps(name, key):
    joint, y = JOINTS[name]
    model = from_tfp(joint, {"y": y})
    pinned = joint.experimental_pin(y=y)
    bijector = pinned.experimental_default_event_space_bijector()
    theta = pinned.sample_unpinned(seed=key)
    u = bijector.inverse(theta)
    expected = pinned.unnormalized_log_prob(theta) + bijector.forward_log_det_jacobian(u)
    by_name = u if isinstance(u, dict) else u._asdict()
    found = model.log_density(dict(by_name), {"y": jnp.asarray(y)})
    assert np.allclose(found, expected, rtol=50 * RTOL)
    log_prior, log_likelihood = model.log_terms(dict(by_name), {"y": jnp.asarray(y)})
    assert np.allclose(log_prior + log_likelihood, found, rtol=50 * RTOL)


@pytest.mark.whole
def test_a_support_that_depends_on_another_latent_is_refused():
    nested = tfd.JointDistributionNamed(
        {
            "top": tfd.HalfNormal(1.0),
            "x": lambda top: tfd.Uniform(0.0, top),
            "y": lambda x: tfd.Normal(x, 1.0),
        }
    )
    with pytest.raises(ValueError, match="the support of `x` depends on another latent"):
        from_tfp(nested, {"y": jnp.array(0.3)})

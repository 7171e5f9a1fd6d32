"""Records: equal by value, and what they are for as long as they live."""

import jax
import jax.numpy as jnp
import optax

from minisvi import SVI, Model, custom, full_rank, mean_field, positive, product, real
from minisvi.tools.record import Record

ADAM = optax.adam(0.1)


def log_joint(theta):
    return -jnp.sum((theta["a"] - 3.0) ** 2) - theta["b"] ** 2


def test_a_record_stays_what_it_is_when_the_callers_tree_changes(key):
    latents = {"a": real(2), "b": real()}
    parts = {"a": mean_field(real(2)), "b": mean_field(real())}
    model, guide = Model(latents, log_joint), product(parts)
    svi = SVI(model, guide, ADAM)
    before = hash(svi)
    first = svi.run(key, 5, progress_bar=False)
    latents["c"] = positive()
    parts["a"] = full_rank(real(2))
    parts["c"] = mean_field(positive())
    assert set(model.latents) == set(guide.parts) == {"a", "b"}
    assert hash(svi) == before
    again = svi.run(key, 5, progress_bar=False)  # found in JAX's caches
    assert jax.tree.all(jax.tree.map(jnp.array_equal, first.params, again.params))


def test_lists_and_trees_in_trees_are_copied_too():
    constrained = {"a": [True, (False, {"b": True})]}
    guide = custom(mean_field, mean_field, constrained)
    same = custom(mean_field, mean_field, {"a": [True, (False, {"b": True})]})
    constrained["a"][1][1]["b"] = False
    constrained["a"].append(True)
    assert guide == same
    assert hash(guide) == hash(same)


def test_every_record_with_a_post_init_copies_its_fields():
    """It calls the one of `Record`, which is what copies."""
    own = [kind for kind in _kinds(Record) if "__post_init__" in vars(kind)]
    assert own
    for kind in own:
        assert "__class__" in kind.__post_init__.__code__.co_freevars, kind  # calls super()


def _kinds(kind):
    found = set()
    for below in kind.__subclasses__():
        found |= {below} | _kinds(below)
    return found

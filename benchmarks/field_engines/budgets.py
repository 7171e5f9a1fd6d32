"""How much each kind of fit may spend. All gradient-based guides of the JAX libraries get the same.

A fit takes `steps` of Adam with `particles` draws each, and its rate decays to a hundredth. On two
targets whose gradients are costly there are fewer steps, and on two others flows get a smaller
rate, because at the usual one their draws overflow.
"""

import math
from typing import NamedTuple

import optax
from accuracy_targets import Target

DECAY = 0.01  # the last rate over the first
NUM_CHAINS, NUM_WARMUP, NUM_SAMPLES = 2, 1_000, 1_000  # of NUTS


class Budget(NamedTuple):
    steps: int
    particles: int
    rate: float


GAUSSIAN = Budget(steps=10_000, particles=10, rate=0.02)
FLOW = Budget(steps=10_000, particles=10, rate=0.01)


def of(kind: Budget, target: Target, effort: float) -> Budget:
    """The budget on this target; `effort` is the share of steps in a trial."""
    found = kind._replace(**target.budget)
    if kind is FLOW and target.flow_rate is not None:
        found = found._replace(rate=target.flow_rate)
    return found._replace(steps=math.ceil(effort * found.steps))


def adam(budget: Budget) -> optax.GradientTransformation:
    return optax.adam(optax.exponential_decay(budget.rate, budget.steps, DECAY))


def chain(effort: float) -> tuple[int, int]:
    """Steps of warm-up and draws of a chain of NUTS."""
    return max(math.ceil(effort * NUM_WARMUP), 50), max(math.ceil(effort * NUM_SAMPLES), 50)

"""BlackJAX's NUTS with window adaptation, as its documentation has it, for whoever times it."""

from collections.abc import Callable
from typing import Any

import jax


def nuts_chains(
    log_density: Callable[[Any], Any],
    constrain: Callable[[Any], Any],
    num_warmup: int,
    num_draws: int,
) -> Callable[[Any, Any], Any]:
    """A jitted function of the keys and the starts u, one for each chain, that gives the draws of
    theta (chain, draw, ...) and whether each diverged.

    It is one program, the chains one after the other, which takes less time than to compile and run
    them side by side.
    """
    import blackjax

    def chain(key_and_start: Any) -> Any:
        key, u = key_and_start
        warmup_key, draw_key = jax.random.split(key)
        warmup = blackjax.window_adaptation(blackjax.nuts, log_density)
        (state, settings), _ = warmup.run(warmup_key, u, num_steps=num_warmup)
        step = blackjax.nuts(log_density, **settings).step

        def draw(state: Any, key: Any) -> Any:
            state, info = step(key, state)
            return state, (constrain(state.position), info.is_divergent)

        _, draws = jax.lax.scan(draw, state, jax.random.split(draw_key, num_draws))
        return draws

    return jax.jit(lambda keys, starts: jax.lax.map(chain, (keys, starts)))

"""The verdict: its figures against closed forms and repeated answers, its rule at its limits,
spoiled guides.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import FLOAT
from jax.scipy.stats import norm
from tiers import standing_for

import minisvi
from minisvi.auto import judging, verdict
from minisvi.auto.figures import Figures, measure
from minisvi.auto.verdict import NUM_BATCHES
from minisvi.posterior.diagnostics import Optima, excess_beyond, log_evidence, psis, tail_size
from minisvi.posterior.moments import Moment

LOC, SD = jnp.array([3.0, -1.0, 0.5]), jnp.array([0.1, 1.0, 20.0])
LATENTS = {"x": minisvi.real(3)}
BULK = "bulk good, tails unverified"
GAUSSIAN = minisvi.Model(LATENTS, lambda theta: 2.5 + jnp.sum(norm.logpdf(theta["x"], LOC, SD)))
MODES = minisvi.Model(
    {"x": minisvi.real()},
    lambda theta: jnp.logaddexp(
        jnp.log(0.7) + norm.logpdf(theta["x"], -6.0), jnp.log(0.3) + norm.logpdf(theta["x"], 6)
    ),
)

BOTH = Optima(
    elbo=jnp.log(jnp.array([0.7, 0.3])),
    elbo_se=jnp.zeros(2),
    loc=jnp.array([[-6.0], [6.0]]),
    log_scale=jnp.zeros((2, 1)),
    converged=jnp.ones(2, bool),
    optimum=jnp.arange(2),
)


def gaussian(loc=LOC, sd=SD):
    guide = minisvi.mean_field(LATENTS)
    return guide, {"loc": jnp.asarray(loc), "log_scale": jnp.log(sd)}


def judged(key, guide, params, model=GAUSSIAN, **options):
    return minisvi.judge(jax.random.key(key), model, guide, params, **options)


@pytest.mark.x64
def test_the_exact_posterior_is_good_and_every_figure_says_so():
    found = judged(0, *gaussian())
    v = found.verdict
    assert v.level == "good"
    tolerance = 1e-9 if jnp.result_type(float) == jnp.float64 else 1e-5
    assert abs(v.elbo - 2.5) < tolerance  # log w is constant, so that the ELBO is the evidence
    assert v.elbo_se < tolerance
    assert abs(v.log_evidence - 2.5) < 5 * v.log_evidence_se
    assert 0.85 < v.ess < 1  # a fifth of the draws are wider than q
    np.testing.assert_allclose(v.error, 1 / np.sqrt(v.ess * v.num_draws), rtol=0.1)
    assert v.broken == 0
    mean, sd = found.draws.mean()["x"], found.draws.sd()["x"]
    assert np.all(np.abs((mean - LOC) / SD) < 4 * v.error)
    assert np.all(np.abs(sd / SD - 1) < 4 * v.error)


@pytest.mark.parametrize(("max_kl", "level"), [(0.15, BULK), (0.21, "good"), (np.inf, "good")])
def test_good_weights_are_not_believed_too_far_from_the_posterior(max_kl, level):
    guide, params = gaussian(LOC + jnp.array([0.0, 0.6, 0.0]) * SD)  # KL(q || p) is 0.6^2 / 2
    found = judged(1, guide, params, max_kl=max_kl).verdict
    assert abs(found.kl - 0.18) < 0.03
    assert found.level == found.of_weights == level
    assert ("nats from the posterior" in found.reason) == (level == BULK)
    assert bool(found.advice) == (level == BULK)


SPOILED = {
    "far off": (gaussian(LOC + 4 * SD), "not trusted"),
    "too narrow": (gaussian(sd=SD / 10), "not trusted"),
    "a little off": (gaussian(LOC + 0.3 * SD), "good"),
    "a little narrow": (gaussian(sd=0.8 * SD), "good"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_guide_is_good_only_where_its_weights_mend_it(name):
    (guide, params), level = SPOILED[name]
    found = judged(1, guide, params)
    assert found.verdict.level == level
    mean, sd = found.draws.mean()["x"], found.draws.sd()["x"]
    worst = max(np.max(np.abs((mean - LOC) / SD)), np.max(np.abs(sd / SD - 1)))
    assert (worst < 0.06) == (level == "good")


@pytest.mark.parametrize(("shape", "largest"), [(0.1, "a batch"), (2.0, "all draws")])
def test_khat_is_the_largest_of_the_batches_and_of_all_draws(shape, largest):
    # Quantiles of a Pareto distribution, one in four to each batch; the fewer they are, the more is
    # k-hat pulled to a half.
    p = (jnp.arange(400) + 0.5) / 400
    batches = (-shape * jnp.log1p(-p)).reshape(-1, NUM_BATCHES).T
    log_w = jnp.ravel(batches)
    khat = lambda log_w: psis(log_w).khat
    of_batches, of_all = max(map(khat, batches)), khat(log_w)
    assert (of_batches > of_all) == (largest == "a batch")
    draws = {"x": np.zeros((400, 3))}
    found = measure(draws, draws, np.asarray(log_w), np.zeros(400)).figures
    np.testing.assert_allclose(found.khat, max(of_batches, of_all), rtol=1e-4)


def lacking(share, start):
    """N(0, I), of which so large a share lies to the left of -start, exponentially, in one of ten
    latents; with the mean and the sd of that one.
    """

    def log_joint(theta):
        x = theta["x"]
        tail = jnp.where(x[0] < -start, x[0] + start, -jnp.inf)
        bulk = jnp.log1p(-share) + norm.logpdf(x[0])
        return jnp.sum(norm.logpdf(x[1:])) + jnp.logaddexp(bulk, jnp.log(share) + tail)

    mean = -share * (start + 1)
    square = (1 - share) + share * (1 + (start + 1) ** 2)
    return minisvi.Model({"x": minisvi.real(10)}, log_joint), mean, np.sqrt(square - mean**2)


@pytest.mark.parametrize("key", standing_for(range(5), 0))
@pytest.mark.parametrize(
    ("share", "start", "level"), [(0.01, 2.0, "good"), (0.05, 3.0, "not trusted")]
)
def test_a_heavy_tail_is_judged_by_what_it_holds(share, start, level, key):
    model, mean, sd = lacking(share, start)
    guide = minisvi.mean_field(model.latents)
    params = {"loc": jnp.zeros(10), "log_scale": jnp.zeros(10)}
    found = judged(key, guide, params, model)
    assert found.verdict.khat > 1.5
    assert found.verdict.level == level
    assert (found.verdict.unseen <= 0.03) == (level == "good")
    mean_error = abs(found.draws.mean()["x"][0] - mean) / sd
    sd_error = abs(found.draws.sd()["x"][0] / sd - 1)
    assert (max(mean_error, sd_error) < 0.03) == (level == "good")


def test_one_draw_that_has_much_of_all_weight_is_not_good():
    # Smoothing takes its weight from it, so that k-hat and the errors are small.
    rng = np.random.default_rng(0)
    draws = {"x": rng.normal(size=(20_000, 3))}
    log_w = 0.1 * rng.normal(size=20_000)
    log_w[7] = np.log(4000)
    found = measure(draws, draws, log_w, np.zeros(20_000)).figures
    assert found.error_u < 0.01
    assert found.khat < 0.7
    np.testing.assert_allclose(found.tail, 4000 / 24_000, rtol=0.05)
    beyond = excess_beyond(found.khat, tail_size(20_000))
    np.testing.assert_allclose(found.unseen, beyond * found.tail, rtol=1e-9)
    by_chance = float(log_evidence(log_w)[1])
    np.testing.assert_allclose(found.log_evidence_se**2, by_chance**2 + found.unseen**2, rtol=1e-9)
    asked = {name: getattr(found, name) for name in SOUND}
    assert verdict.rule_on_weights(**asked).level == BULK


@pytest.mark.slow
def test_the_error_is_the_spread_of_repeated_answers():
    guide, params = gaussian(LOC + 0.5 * SD, 0.9 * SD)
    answers = [judged(key, guide, params, num_draws=4000, max_draws=4000) for key in range(40)]
    means = np.stack([np.asarray((a.draws.mean()["x"] - LOC) / SD) for a in answers])
    sds = np.stack([np.asarray(a.draws.sd()["x"] / SD - 1) for a in answers])
    spread = max(np.max(np.sqrt(np.mean(means**2, 0))), np.max(np.sqrt(np.mean(sds**2, 0))))
    # The largest of six standard errors against the largest of six estimated from 40 answers.
    assert 0.7 < np.mean([a.verdict.error for a in answers]) / spread < 1.4


def test_a_mode_that_q_misses_is_seen_by_the_restarts_alone():
    guide = minisvi.mean_field(MODES.latents)
    params = {"loc": jnp.array([-6.0]), "log_scale": jnp.zeros(1)}
    blind = judged(2, guide, params, MODES).verdict
    assert blind.of_weights == "good"  # q and its weights are right about the one mode
    assert blind.optima is None
    seen = judged(2, guide, params, MODES, optima=BOTH).verdict
    assert seen.optima == 2
    assert seen.level == "not trusted"
    assert "an optimum" in seen.reason
    np.testing.assert_allclose(seen.missed, 0.3 / 0.7, rtol=1e-5)  # of the best optimum's mass
    assert seen.misses_a_mode()
    assert any("several modes" in line for line in seen.advice)
    # Where only one start has converged, what is missed is not another mode.
    one = BOTH._replace(converged=np.array([True, False]))
    alone = judged(2, guide, params, MODES, optima=one).verdict
    assert alone.level == "not trusted"
    assert alone.optima == 1
    assert not alone.misses_a_mode()
    assert not any("several modes" in line for line in alone.advice)


@pytest.mark.parametrize("bad", [jnp.nan, -jnp.inf])
@pytest.mark.parametrize(("place", "mass"), [(1, np.exp(-0.1)), (2, 0.3)])
def test_an_optimum_without_an_elbo_hides_neither_itself_nor_another(place, mass, bad):
    guide = minisvi.mean_field(MODES.latents)
    three = Optima(
        elbo=jnp.insert(jnp.array([0.0, -0.1]), place, bad),
        elbo_se=jnp.zeros(3),
        loc=jnp.array([[-6.0], [-6.0], [6.0]]),
        log_scale=jnp.zeros((3, 1)),
        converged=jnp.array([True, False, False]),
        optimum=jnp.array([0, 0, 2]),
    )
    seen = judged(
        2, guide, {"loc": jnp.array([-6.0]), "log_scale": jnp.zeros(1)}, MODES, optima=three
    ).verdict
    assert seen.level == "not trusted"
    np.testing.assert_allclose(seen.missed, mass, rtol=1e-5)
    assert seen.optima == 1  # of those that have converged; the one that is missed has not


def test_q_does_not_miss_the_optimum_that_it_is_at():
    # Among many latents the mode of a q that is a little too wide has p/q above all draws.
    model = minisvi.Model({"x": minisvi.real(100)}, lambda theta: jnp.sum(norm.logpdf(theta["x"])))
    guide, loc = minisvi.mean_field(model.latents), jnp.zeros((2, 100)).at[1].set(0.6)
    ends = Optima(
        jnp.array([0.0, -18.0]),
        jnp.zeros(2),
        loc,
        jnp.zeros((2, 100)),
        jnp.array([True, False]),
        jnp.arange(2),
    )
    found = judged(
        5, guide, {"loc": loc[0], "log_scale": jnp.full(100, jnp.log(1.02))}, model, optima=ends
    ).verdict
    assert (found.level, found.missed, found.optima) == ("good", 0.0, 1)


@pytest.mark.parametrize(("num", "error"), [(99, ValueError), (0, ValueError), (2000.5, TypeError)])
def test_a_verdict_needs_a_hundred_draws(num, error):
    with pytest.raises(error, match=f"`num_draws` must be an integer >= 1.*; got {num}"):
        judged(0, *gaussian(), num_draws=num)
    with pytest.raises(error, match=f"`num_draws` must be an integer >= 1.*; got {num}"):
        minisvi.fit(jax.random.key(0), GAUSSIAN, num_draws=num)


def test_a_guide_over_both_modes_misses_none():
    guide = minisvi.mean_field(MODES.latents)
    wide = judged(
        3,
        guide,
        {"loc": jnp.array([-2.4]), "log_scale": jnp.log(jnp.array([6.0]))},
        MODES,
        optima=BOTH,
    )
    assert wide.verdict.missed == 0
    assert wide.verdict.level == "good"
    assert abs(wide.draws.mean()["x"] + 2.4) < 0.03 * 5.6


@pytest.mark.parametrize(
    ("bad", "level"), [(np.nan, "bulk good, tails unverified"), (np.inf, "not trusted")]
)
def test_a_few_draws_without_a_density_count_as_zero(bad, level):
    # Beyond seven sds, where some of the wider draws are.
    model = minisvi.Model(LATENTS, lambda t: jnp.where(t["x"][1] < 6.0, GAUSSIAN.log_joint(t), bad))
    found = judged(4, *gaussian(), model)
    assert 0 < found.verdict.broken <= 1e-3 * found.verdict.num_draws
    assert found.verdict.level == level
    assert f"{found.verdict.broken} draws have a density of NaN or +inf" in found.verdict.reason
    if level != "not trusted":
        assert abs(found.verdict.log_evidence - 2.5) < 5 * found.verdict.log_evidence_se
        assert abs(found.draws.sd()["x"][1] - 1) < 4 * found.verdict.error


def test_a_density_of_nan_is_counted_and_never_trusted():
    model = minisvi.Model(
        LATENTS, lambda t: jnp.where(t["x"][1] < 1.5, GAUSSIAN.log_joint(t), jnp.nan)
    )
    found = judged(4, *gaussian(), model)
    assert found.verdict.level == "not trusted"
    assert f"{found.verdict.broken} draws" in found.verdict.reason
    assert 0 < found.verdict.broken < found.verdict.num_draws / 10
    assert np.isfinite(found.draws.mean()["x"]).all()


def test_a_draw_outside_the_support_only_has_no_weight():
    model = minisvi.Model(
        LATENTS, lambda t: jnp.where(t["x"][1] < -1.0, GAUSSIAN.log_joint(t), -jnp.inf)
    )
    found = judged(5, *gaussian(), model)
    assert found.verdict.level == "good"
    assert abs(found.verdict.log_evidence - (2.5 - np.log(2))) < 4 * found.verdict.log_evidence_se
    assert abs(found.draws.mean()["x"][1] - (-1 - np.sqrt(2 / np.pi))) < 0.05


@pytest.mark.slow
def test_more_draws_are_taken_where_they_are_all_that_is_missing():
    guide, params = gaussian()
    few = judged(6, guide, params, num_draws=600, max_draws=600).verdict
    assert few.level != "good"
    more = judged(6, guide, params, num_draws=600).verdict
    assert more.level == "good"
    assert more.num_draws == 2400


SOUND = {"khat": 0.1, "ess": 0.9, "tail": 0.01, "unseen": 0.001, "error_u": 0.01, "broken": 0}
# Of 20,000 draws, which of four and sixteen times as many would make it good.
MORE_DRAWS = {
    "good already": ({}, ()),
    "the error": ({"error_u": 0.05}, (4, 16)),
    "a larger error": ({"error_u": 0.07}, (16,)),
    "too large an error": ({"error_u": 0.13}, ()),
    "what is unseen": ({"khat": 0.5, "unseen": 0.05}, (4, 16)),  # 4^(k - 1) of it is 0.025
    "too much is unseen": ({"khat": 0.5, "unseen": 0.07}, ()),
    "a tail without a mean": ({"khat": 1.2, "unseen": 0.04}, ()),
    "q too far from the posterior": ({"error_u": 0.05, "log_evidence": 0.2}, ()),
    "the tail": ({"khat": 0.5, "tail": 0.13}, (4, 16)),  # 2^(k - 1) of it is 0.092
    "too much in the tail": ({"khat": 0.5, "tail": 0.15}, ()),
    "the error and the tail": ({"error_u": 0.07, "khat": 0.5, "tail": 0.13}, (16,)),
}


def evidence_of(num_draws, **changed):
    known = {**dict.fromkeys(Figures._fields, 0.0), **SOUND, **changed}
    of_moments = [Moment("a", 1, known["error_u"], -np.inf, known["unseen"])]
    return judging._Evidence(Figures(**known), of_moments, num_draws, 0.0, None, None, max_kl=0.1)


@pytest.mark.parametrize("name", MORE_DRAWS)
def test_more_draws_help_where_errors_and_a_pareto_tail_say_so(name):
    changed, expected = MORE_DRAWS[name]
    evidence = evidence_of(20_000, **changed)
    helps = [n for n in (4, 16) if judging._helps(evidence, n * 20_000, reach=80_000)]
    assert helps == list(expected)


def test_no_farther_tail_is_foretold_once_there_are_as_many_draws_as_it_may_reach():
    evidence = evidence_of(80_000, khat=0.5, unseen=0.05)
    assert not judging._helps(evidence, 320_000, reach=80_000)
    assert judging._helps(evidence, 320_000, reach=320_000)


def test_of_many_latents_there_are_no_more_than_80_000_draws():
    few, many = {"x": np.zeros((1, 90))}, {"x": np.zeros((1, 500))}
    assert judging._most_draws(few) > 320_000 > judging._most_draws(many) == 80_000


@pytest.mark.slow
@pytest.mark.foreign
def test_any_guide_can_be_judged():
    import distrax

    custom = minisvi.custom(
        lambda key: {}, lambda params, *_: {"x": distrax.MultivariateNormalDiag(LOC, SD)}
    )
    found = judged(7, custom, {}).verdict
    assert found.level == "good"
    assert found.ess > 0.999  # drawn from keys: no wider draws
    flow = minisvi.affine_coupling(minisvi.mean_field(LATENTS), num_layers=2)
    params = flow.init(jax.random.key(0), base=gaussian()[1])
    assert judged(8, flow, params).verdict.level == "good"


RULE = {
    "good": ({"unseen": 0.03, "error_u": 0.03}, "good"),
    "a heavy tail that holds little": ({"khat": 1.5, "tail": 0.02, "unseen": 0.02}, "good"),
    "few draws with a light tail": ({"ess": 0.05, "tail": 0.1, "error_u": 0.029}, "good"),
    "much beyond the draws": ({"khat": 0.5, "unseen": 0.031}, "not trusted"),
    "it is not known what is": ({"unseen": np.nan}, "not trusted"),
    "a tail that holds much": ({"tail": 0.11}, "bulk good, tails unverified"),
    "error too large for good": ({"error_u": 0.04}, "bulk good, tails unverified"),
    "error too large": ({"error_u": 0.11}, "not trusted"),
    "broken": ({"khat": np.inf, "broken": 90}, "not trusted"),
    "a few broken": ({"broken": 3}, "bulk good, tails unverified"),
    "a mode missed": ({"missed": 0.02}, "not trusted"),
    "a speck missed": ({"missed": 0.005}, "good"),
}


@pytest.mark.parametrize("name", RULE)
def test_the_rule(name):
    figures, level = RULE[name]
    assert verdict.rule_on_weights(**{**SOUND, **figures})[0] == level


MEAN, SD_OF_A = Moment("a", 1, 0.01, -np.inf), Moment("a", 2, 0.02, 0.3)
HELD = {
    "all moments hold": ("good", [MEAN, SD_OF_A], 0.9, "good", "^by weights$"),
    "an error": (
        "good",
        [MEAN, SD_OF_A._replace(error=0.04)],
        0.9,
        BULK,
        "but not the sd of `a`: the error is 0.04 sd",
    ),
    "an error that is enough for less": (
        BULK,
        [MEAN, SD_OF_A._replace(error=0.04)],
        0.9,
        BULK,
        "^by weights$",
    ),
    "a tail of theta": (
        "good",
        [MEAN, SD_OF_A._replace(khat=0.9)],
        0.9,
        BULK,
        r"rare draws decide it .*shape 0.90",
    ),
    "a tail of the weights": (
        "good",
        [MEAN, SD_OF_A._replace(khat=0.85)],
        0.5,
        "good",
        "^by weights$",
    ),
    "a tail beyond that of the weights": (
        "good",
        [MEAN, SD_OF_A._replace(khat=0.95)],
        0.5,
        BULK,
        r"the weights do not reach it .*shape 0.95",
    ),
    "a tail where the weights are not good either": (
        BULK,
        [MEAN, SD_OF_A._replace(khat=0.85)],
        0.5,
        BULK,
        r"but not the sd of `a`: the weights do not reach it .*shape 0.85",
    ),
    "a heavy tail": (
        BULK,
        [SD_OF_A._replace(khat=1.1)],
        0.5,
        BULK,
        r"the weights do not reach it .*shape 1.10",
    ),
    "what lies beyond the draws": (
        "good",
        [MEAN, SD_OF_A._replace(unseen=0.05)],
        0.9,
        BULK,
        "but not the sd of `a`: what lies beyond the draws may move it by 0.05 sd",
    ),
    "an error of NaN": (
        "good",
        [MEAN._replace(error=np.nan)],
        0.9,
        BULK,
        "but not the mean of `a`",
    ),
    "many": (
        "good",
        [SD_OF_A._replace(error=1.0)] * 5,
        0.9,
        BULK,
        "the sd of `a` and 2 more: the error",
    ),
    "not trusted before": (
        "not trusted",
        [SD_OF_A._replace(error=1.0)],
        0.9,
        "not trusted",
        "^by weights$",
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_the_level_of_the_weights_is_held_against_the_moments(name):
    of_weights, known, ess, level, reason = HELD[name]
    found = verdict.rule(known, (of_weights, "by weights"), ess, 0.001, 100.0)
    assert found[0] == level
    assert re.search(reason, found[1])


def test_a_density_that_is_rounding_is_not_trusted():
    level, reason = verdict.rule([MEAN], ("good", "by weights"), 0.9, 8.0, 1e8)
    assert level == "not trusted"
    assert "log p is about 1e+08, where the dtype's numbers are 8 nats apart" in reason


@pytest.mark.skipif(jnp.finfo(FLOAT).bits == 64, reason="float64 has digits enough")
def test_an_offset_that_float32_cannot_carry_is_said():
    offset = minisvi.Model(LATENTS, lambda theta: GAUSSIAN.log_joint(theta) + 1e8)
    found = judged(0, *gaussian(), offset).verdict
    assert found.level == "not trusted"
    assert found.spacing > 1
    small = minisvi.Model(LATENTS, lambda theta: GAUSSIAN.log_joint(theta) + 1e4)
    assert judged(0, *gaussian(), small).verdict.level == "good"


def log_normal(scale):
    """log theta ~ N(1, scale^2), of which q is exact in u = log theta."""
    latents = {"fine": minisvi.real(), "s": minisvi.positive()}

    def log_joint(theta):
        u = jnp.log(theta["s"])
        return norm.logpdf(theta["fine"], 3.0, 2.0) + norm.logpdf(u, 1.0, scale) - u

    guide = minisvi.mean_field(latents)
    params = {"loc": jnp.array([3.0, 1.0]), "log_scale": jnp.log(jnp.array([2.0, scale]))}
    return minisvi.Model(latents, log_joint), guide, params


@pytest.mark.parametrize("key", standing_for(range(3), 0))
def test_a_moment_that_rare_draws_decide_is_named_and_the_quantiles_hold(key):
    model, guide, params = log_normal(2.0)
    found = judged(key, guide, params, model, num_draws=4000)
    assert found.verdict.of_weights == "good"
    assert found.verdict.level == BULK
    assert found.verdict.reason.startswith("quantiles hold, but not the sd of `s`")
    assert found.verdict.worst == "s"
    assert all("`s`" in moment for moment in found.verdict.unreached)
    median, high = found.draws.quantiles([0.5, 0.9])["s"]
    assert abs(np.log(median) - 1.0) < 0.15
    assert abs(np.log(high) - (1.0 + 2.0 * 1.2816)) < 0.3


def test_moments_of_theta_that_hold_are_good():
    model, guide, params = log_normal(0.3)
    found = judged(0, guide, params, model, num_draws=8000)
    assert found.verdict.level == "good"
    assert found.verdict.unreached == ()
    sd = np.exp(1 + 0.045) * np.sqrt(np.expm1(0.09))
    assert abs(found.draws.sd()["s"] / sd - 1) < 4 * found.verdict.error


def test_it_prints_as_a_table():
    text = str(judged(0, *gaussian(), optimism=0.25).verdict)
    assert text.splitlines()[0].startswith("verdict       good: the weights make up for ")
    assert "0.25 nats, of fixed draws over fresh ones" in text
    assert "optima" not in text


def test_a_second_verdict_does_not_trace_again():
    traces = []

    def log_joint(theta):
        traces.append(1)
        return GAUSSIAN.log_joint(theta)

    model = minisvi.Model(LATENTS, log_joint)
    judged(0, *gaussian(), model)
    before = len(traces)
    judged(1, *gaussian(LOC + 0.1, SD), model)
    assert len(traces) == before


@pytest.mark.foreign
def test_a_guide_over_theta_misses_an_optimum_in_its_own_space():
    """Log-normal modes at 1 and 1,000: what is compared at an optimum is two densities over
    theta.
    """
    model = minisvi.Model(
        {"x": minisvi.positive()},
        lambda t: (
            jnp.logaddexp(
                *(jnp.log(0.5) + norm.logpdf(jnp.log(t["x"]), m, 0.5) for m in (0.0, 7.0))
            )
            - jnp.log(t["x"])
        ),
    )
    loc = jnp.array([[0.0], [7.0]])
    both = BOTH._replace(
        elbo=jnp.log(jnp.array([0.5, 0.5])), loc=loc, log_scale=jnp.log(0.5) * jnp.ones((2, 1))
    )

    def log_normal(mean, sd):
        import distrax

        return lambda params, *_: {
            "x": distrax.Transformed(distrax.Normal(mean, sd), distrax.Lambda(jnp.exp))
        }

    one, wide = (
        minisvi.custom(lambda key: {}, log_normal(*at), constrained=True)
        for at in ((0.0, 0.5), (3.5, 3.6))
    )
    assert judged(9, one, {}, model, optima=both).verdict.missed == 1.0
    assert judged(9, wide, {}, model, optima=both).verdict.missed == 0.0

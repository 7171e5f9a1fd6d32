"""The cascade: exact answers, what it says when there is none, budgets, keys, and calibration by
simulation.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from problems import (
    conjugate_data,
    conjugate_model,
    conjugate_posterior,
    gamma_data,
    gamma_log_joint,
)
from scipy.stats import chisquare
from tiers import standing_for

import minisvi
from minisvi import Model, real
from minisvi.auto import cascade, last_stage
from minisvi.auto import fit as fit_file
from minisvi.auto.stages import Settings
from minisvi.running.progress import StageDisplay
from minisvi.second_order import deterministic as deterministic_file
from minisvi.tools.interrupts import deferred_interrupt, interrupted


def fitted(key, model, *data, **options):
    return minisvi.fit(jax.random.key(key), model, *data, progress_bar=False, **options)


def test_a_conjugate_gaussian_is_exact_in_its_first_stage():
    x = conjugate_data()
    fit = fitted(0, conjugate_model(), x)
    loc, sd, log_evidence = conjugate_posterior(x)
    assert [stage.name for stage in fit.stages] == ["linear response"]
    assert fit.verdict.level == "good"
    assert fit.deterministic.converged
    assert abs(fit.verdict.elbo - log_evidence) < 1e-3
    assert abs(fit.verdict.log_evidence - log_evidence) < 5 * fit.verdict.log_evidence_se
    assert np.all(np.abs((fit.draws.mean()["w"] - loc) / sd) < 4 * fit.verdict.error)
    assert np.all(np.abs(fit.draws.sd()["w"] / sd - 1) < 4 * fit.verdict.error)
    plain = fit.posterior.sd(jax.random.key(1), 20_000)["w"]
    assert np.all(np.abs(plain / sd - 1) < 0.03)


STAGES = {  # the levels and ELBOs of the stages, and which of these is the best
    "the level": ([("not trusted", -1.0), ("good", -3.0), ("good", -4.0)], 1),
    "the ELBO": ([("not trusted", -1.0), ("good", -3.0), ("good", -2.0)], 2),
    "no ELBO": ([("not trusted", np.nan), ("not trusted", -9.0), ("not trusted", np.inf)], 1),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_best_stage_has_the_highest_level_and_then_the_highest_elbo(name):
    verdicts, best = STAGES[name]
    stages = [
        SimpleNamespace(judged=SimpleNamespace(verdict=SimpleNamespace(level=level, elbo=elbo)))
        for level, elbo in verdicts
    ]
    fit = fit_file.Fit(NO_LATENTS, (), tuple(stages), None)
    assert fit.best is stages[best]


@pytest.mark.whole
def test_the_gamma_example():
    model = minisvi.Model({"concentration": minisvi.positive()}, gamma_log_joint)
    fit = fitted(1, model, gamma_data())
    assert fit.verdict.level == "good"
    assert (
        abs(fit.verdict.log_evidence + 1590.66069) < 0.02
    )  # by quadrature; float32 sums 1,000 rows
    mean, sd = fit.draws.mean()["concentration"], fit.draws.sd()["concentration"]
    assert abs(mean - 1.99826) < 0.03 * 0.03932
    assert abs(sd / 0.03932 - 1) < 0.02  # three standard errors


def test_a_first_fit_compiles_the_values_and_the_derivatives_of_the_density(programs):
    def log_joint(theta, y):
        return norm.logpdf(theta["m"], 3.0, 2.0) + jnp.sum(norm.logpdf(y, theta["m"], 1.5))

    key, y, other = jax.random.key(0), jnp.linspace(1.0, 9.0, 37), jnp.linspace(2.0, 10.0, 37)
    model = minisvi.Model({"m": minisvi.real()}, log_joint)
    with programs() as found:
        fit = minisvi.fit(key, model, y, progress_bar=False)
        print(fit, fit.summary(), fit.draws.quantiles([0.1, 0.9]))
    assert fit.verdict.level == "good"
    assert len(found) == 2
    with programs() as found:
        minisvi.fit(key, model, other, progress_bar=False)
    assert not found


def banana(theta):
    x, y = theta["x"]
    return norm.logpdf(x, 2.0, 3.0) + norm.logpdf(y, 0.3 * (x - 2.0) ** 2)


@pytest.mark.foreign
@pytest.mark.slow
def test_a_banana_needs_the_flow_and_says_so():
    fit = fitted(2, minisvi.Model({"x": minisvi.real(2)}, banana))
    names, levels = zip(*((stage.name, stage.judged.verdict.level) for stage in fit.stages))
    assert names[0] in ("linear response", "mean field")
    assert levels[0] != "good"
    assert names[-1].startswith("flow, ")
    assert fit.verdict.level == "good"
    assert abs(fit.verdict.log_evidence) < 0.02
    mean, sd = np.array([2.0, 2.7]), np.array([3.0, np.sqrt(1 + 2 * 2.7**2)])
    assert np.all(np.abs((fit.draws.mean()["x"] - mean) / sd) < 0.05)
    assert np.all(np.abs(fit.draws.sd()["x"] / sd - 1) < 0.08)


@pytest.mark.slow
def test_equal_keys_give_equal_fits_and_nothing_is_traced_again():
    traces = []

    def log_joint(theta, x):
        traces.append(1)
        return jnp.sum(norm.logpdf(theta["a"])) + jnp.sum(
            norm.logpdf(x, theta["a"][0], jnp.exp(theta["a"][1]))
        )

    model, x = minisvi.Model({"a": minisvi.real(2)}, log_joint), jnp.array([0.3, 1.9, -0.4, 2.2])
    one = fitted(3, model, x)
    before = len(traces)
    two, other = fitted(3, model, x), fitted(4, model, x + 1)
    assert len(traces) == before or len(other.stages) > len(one.stages)
    np.testing.assert_array_equal(one.draws.theta["a"], two.draws.theta["a"])
    assert one.verdict == two.verdict
    assert one.verdict != other.verdict


IMPROPER = {
    "a constant": lambda theta: 0.0 * jnp.sum(theta["a"]),
    "one flat latent": lambda theta: norm.logpdf(theta["a"][0]) + 0.0 * theta["a"][1],
    "rises forever": lambda theta: norm.logpdf(theta["a"][0]) + theta["a"][1],
}


@pytest.mark.foreign
@pytest.mark.parametrize("name", standing_for(IMPROPER, "one flat latent"))
def test_an_improper_posterior_is_named_and_not_trusted(name):
    fit = fitted(5, minisvi.Model({"a": minisvi.real(2)}, IMPROPER[name]))
    assert len(fit.stages) == 1
    assert fit.verdict.level == "not trusted"
    assert "runs away along `a`" in fit.verdict.reason
    assert "improper" in fit.verdict.reason
    assert not fit.deterministic.converged


@pytest.mark.slow
def test_a_mode_on_the_boundary():
    """Exp(3) on the positive numbers: its density is highest at zero."""
    model = minisvi.Model({"rate": minisvi.positive()}, lambda t: jnp.log(3.0) - 3 * t["rate"])
    fit = fitted(6, model)
    assert abs(fit.draws.mean()["rate"] - 1 / 3) < 0.02
    assert abs(fit.verdict.log_evidence) < 0.02
    assert fit.verdict.level == "good"


@pytest.mark.slow
def test_a_density_that_is_nan_on_part_of_the_space():
    """sqrt of a negative number: q gets there, and the verdict says so."""

    def log_joint(theta):
        return norm.logpdf(jnp.sqrt(theta["a"]), 1.0, 1.0)

    fit = fitted(7, minisvi.Model({"a": minisvi.real()}, log_joint), seconds=1.0)
    assert fit.verdict.level == "not trusted"
    assert "NaN" in fit.verdict.reason


def test_a_start_that_is_not_finite_is_drawn_again_and_none_at_all_is_an_error():
    inside = minisvi.Model(
        {"a": minisvi.real()},
        lambda t: jnp.where(t["a"] > 0.5, norm.logpdf(t["a"], 5.0, 0.5), -jnp.inf),
    )
    fit = fitted(8, inside)
    assert abs(fit.draws.mean()["a"] - 5.0) < 0.02
    assert abs(fit.draws.sd()["a"] - 0.5) < 0.01
    nowhere = minisvi.Model({"a": minisvi.real()}, lambda t: -jnp.inf * jnp.ones_like(t["a"]))
    with pytest.raises(ValueError, match="expected a finite log density at one of 256 starts"):
        fitted(9, nowhere)


def test_the_error_of_no_finite_start_names_the_prior_that_is_not_finite():
    class Nowhere:
        def log_prob(self, value):
            return jnp.nan * value

    model = minisvi.Model(
        {"a": minisvi.real(), "b": minisvi.real()},
        prior=lambda t: {"a": None, "b": Nowhere()},
        log_likelihood=lambda t, y: -((y - t["a"]) ** 2),
    )
    with pytest.raises(ValueError, match=r"Not finite at one of them: the prior of `b`$"):
        fitted(9, model, jnp.ones(3))


NO_LATENTS = minisvi.Model({}, lambda theta: jnp.array(-3.5))
LOG_JOINT = minisvi.Model({"w": minisvi.real(3)}, lambda w, x: -jnp.sum((x - w["w"][None]) ** 2))


@pytest.mark.parametrize(
    ("batch_size", "model", "data", "error", "message"),
    [
        (
            0,
            conjugate_model(),
            conjugate_data(),
            ValueError,
            "`batch_size` must be an integer >= 1; got 0",
        ),
        (
            1.5,
            conjugate_model(),
            conjugate_data(),
            TypeError,
            "`batch_size` must be an integer >= 1; got 1.5",
        ),
        (
            8,
            conjugate_model(),
            conjugate_data(),
            ValueError,
            r"`batch_size` must be in 1\.\.7; got 8",
        ),
        (
            2,
            conjugate_model(),
            None,
            ValueError,
            "expected data with the same number of rows; got {}",
        ),
        (2, LOG_JOINT, conjugate_data(), ValueError, "a minibatch needs a factored model"),
    ],
)
def test_a_batch_size_that_will_not_do_is_found_before_the_first_stage(
    batch_size, model, data, error, message
):
    with pytest.raises(error, match=message):
        fitted(0, model, *([] if data is None else [data]), batch_size=batch_size)


@pytest.mark.parametrize("num_draws", [2000, 30_000])
def test_more_draws_are_at_most_sixteen_times_as_many(num_draws, monkeypatch):
    def judge(*_, num_draws, max_draws, **options):
        raise InterruptedError(f"{num_draws} to {max_draws}")

    monkeypatch.setattr(fit_file, "judge", judge)
    with pytest.raises(InterruptedError, match=f"^{num_draws} to {16 * num_draws}$"):
        fitted(10, NO_LATENTS, num_draws=num_draws)


@pytest.mark.slow
def test_no_latents():
    fit = fitted(10, NO_LATENTS)
    assert fit.verdict.level == "good"
    assert fit.verdict.log_evidence == fit.verdict.elbo == -3.5
    assert fit.to_arviz(jax.random.key(1), 50)["sample_stats"]["log_weight"].shape == (1, 50)


@pytest.mark.foreign
@pytest.mark.slow
def test_a_budget_that_is_too_small_returns_what_there_is():
    model = minisvi.Model({"x": minisvi.real(2)}, banana)
    fit = fitted(11, model, seconds=0.0)
    assert len(fit.stages) == 1
    assert fit.verdict.level == "not trusted"
    assert np.isfinite(fit.draws.mean()["x"]).all()
    begin = time.monotonic()
    fitted(11, model, seconds=0.5)  # compiled already
    assert time.monotonic() - begin < 60


def press_now(function):
    """`function`, with Ctrl-C pressed while it is at work."""

    def pressed(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return function(*args, **kwargs)

    return pressed


def test_ctrl_c_before_anything_is_judged_returns_what_there_is(monkeypatch):
    monkeypatch.setattr(deterministic_file, "minimised", press_now(deterministic_file.minimised))
    fit = fitted(14, minisvi.Model({"x": minisvi.real(2)}, banana))
    assert [stage.name for stage in fit.stages] == ["mean field"]
    assert fit.verdict.level == "not trusted"
    assert fit.verdict.reason == "interrupted before anything was judged"
    assert not fit.deterministic.converged
    assert np.isfinite(fit.draws.mean()["x"]).all()
    assert "nan" in str(fit)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_a_stage_is_judged_keeps_it(monkeypatch):
    monkeypatch.setattr(fit_file, "judge", press_now(minisvi.judge))
    fit = fitted(14, minisvi.Model({"x": minisvi.real(2)}, banana), num_draws=2000)
    assert len(fit.stages) == 1
    assert fit.verdict.reason.startswith("interrupted; k-hat ")
    assert np.isfinite(fit.verdict.khat)


def test_an_interrupted_fit_remembers_nothing_that_is_not_finished(monkeypatch, tmp_path):
    model = minisvi.Model({"x": minisvi.real(2)}, banana)
    with monkeypatch.context() as patch:
        patch.setattr(deterministic_file, "minimised", press_now(deterministic_file.minimised))
        fitted(14, model, checkpoint_dir=tmp_path)
    assert not (tmp_path / "mean field").exists()


def test_two_interrupts_inside_one_another_are_one():
    with deferred_interrupt() as outer:
        assert not interrupted()
        with deferred_interrupt() as inner:
            assert inner is outer
            os.kill(os.getpid(), signal.SIGINT)
        assert outer.is_set()
        assert interrupted()
    assert not interrupted()


def test_some_of_the_rows_stand_for_all_of_them():
    data = {"x": jnp.arange(30.0)}, jnp.arange(30)
    (rows, places), weight = cascade._some_rows(np.random.default_rng(0), data, 12)
    assert weight == 30 / 12
    assert len(np.unique(places)) == 12
    np.testing.assert_array_equal(rows["x"], places)
    same, weight = cascade._some_rows(np.random.default_rng(0), data, 30)
    assert same is data
    assert weight is None


@pytest.mark.slow
def test_minibatches_of_a_conjugate_posterior():
    key = jax.random.key(12)
    x = jnp.array([[4.0, -35.0, 0.4]]) + jnp.array([[0.5, 30.0, 0.2]]) * jax.random.normal(
        key, (1003, 3)
    )
    fit = fitted(13, conjugate_model(), x, batch_size=10, num_draws=2000)
    loc, sd, log_evidence = conjugate_posterior(x)
    assert [stage.name for stage in fit.stages] == ["linear response"]
    assert fit.verdict.level == "good"
    assert abs(fit.verdict.log_evidence - log_evidence) < 5 * fit.verdict.log_evidence_se + 1e-3
    assert np.all(np.abs((fit.draws.mean()["w"] - loc) / sd) < 5 * fit.verdict.error)


@pytest.mark.slow
def test_more_than_two_thousand_latents_take_a_low_rank_guide():
    size = 2100
    a = np.random.default_rng(0).normal(size=size)
    loc, sd = jnp.linspace(-5, 5, size), jnp.exp(jnp.linspace(-2, 2, size))
    direction = jnp.asarray(a / np.linalg.norm(a))

    def log_joint(theta):
        """N(loc, S (I + 8 d d^T) S): one direction is three times as wide."""
        z = (theta["x"] - loc) / sd
        return (
            -0.5 * (z @ z - (1 - 1 / 9) * (direction @ z) ** 2)
            - jnp.sum(jnp.log(sd))
            - jnp.log(3.0)
        )

    fit = fitted(14, minisvi.Model({"x": minisvi.real(size)}, log_joint))
    names = [stage.name for stage in fit.stages]
    assert names[0] == "mean field"
    assert names[-1].startswith("low rank, ")
    evidence = size * 0.5 * np.log(2 * np.pi)
    first, last = (stage.judged.verdict for stage in (fit.stages[0], fit.stages[-1]))
    assert evidence - last.elbo < 0.3 * (evidence - first.elbo)


@pytest.mark.slow
def test_export_keeps_the_weights():
    arviz_stats = pytest.importorskip("arviz_stats")
    x = conjugate_data()
    fit = fitted(0, conjugate_model(), x)
    tree = fit.to_arviz(jax.random.key(2), 1000)
    assert tree["sample_stats"]["log_weight"].shape == (1, 1000)
    assert tree["log_likelihood"]["log_likelihood"].shape == (1, 1000, 7)
    loc, sd, _ = conjugate_posterior(x)
    summary = arviz_stats.summary(tree, round_to="none")
    assert np.all(np.abs((summary["mean"].to_numpy() - loc) / sd) < 0.15)


def test_it_prints_its_stages_and_its_verdict():
    text = str(fitted(0, conjugate_model(), conjugate_data())).splitlines()
    assert text[0].startswith("linear response")
    assert text[1].startswith("verdict       good")


GAUSSIAN_PROCESS = """
import jax, jax.numpy as jnp
from jax.scipy.stats import norm
import minisvi

x = jnp.linspace(0, 1, 9)
y = jnp.sin(6 * x)

def log_joint(theta, x, y):
    k = theta["amplitude"] ** 2 * jnp.exp(-0.5 * ((x[:, None] - x[None, :]) / theta["length"]) ** 2)
    factor = jnp.linalg.cholesky(k + 1e-3 * jnp.eye(x.size))
    white = jax.scipy.linalg.solve_triangular(factor, theta["f"], lower=True)
    prior = jnp.sum(norm.logpdf(white)) - jnp.sum(jnp.log(jnp.diag(factor)))
    amplitude = norm.logpdf(jnp.log(theta["amplitude"]))
    length = norm.logpdf(jnp.log(theta["length"]), -1.0, 0.5)
    return prior + amplitude + length + jnp.sum(norm.logpdf(y, theta["f"], 0.1))

latents = {"amplitude": minisvi.positive(), "length": minisvi.positive(), "f": minisvi.real(9)}
model = minisvi.Model(latents, log_joint)
fit = minisvi.fit(jax.random.key(0), model, x, y, progress_bar=False)
print(fit.verdict.level, len(fit.stages))
"""


@pytest.mark.slow
def test_a_gaussian_process_goes_through_the_cascade():
    """In a process of its own, under a time limit: what can go wrong is that it never ends."""
    command = [sys.executable, "-c", textwrap.dedent(GAUSSIAN_PROCESS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in ("good", "bulk")


# Calibration by simulation (Talts et al. 2018): theta from the prior, data from theta, the rank of
# theta among draws.

SHAPE_MODEL = minisvi.Model(
    {"shape": minisvi.positive()},
    lambda t, z: (
        norm.logpdf(jnp.log(t["shape"]), 0.5, 0.5) - jnp.log(t["shape"]) + gamma_rows(t["shape"], z)
    ),
)
ROWS, SLOPES = 20, 3


def gamma_rows(c, z):
    return jnp.sum((c - 1) * jnp.log(z) - z) - z.size * jax.scipy.special.gammaln(c)


def shape_data(key):
    one, two = jax.random.split(key)
    shape = jnp.exp(0.5 + 0.5 * jax.random.normal(one))
    return shape, (jax.random.gamma(two, shape, (ROWS,)),)


LOGISTIC = minisvi.Model(
    {"beta": minisvi.real(SLOPES)},
    lambda t, x, y: (
        jnp.sum(norm.logpdf(t["beta"])) - jnp.sum(jax.nn.softplus(-y * (x @ t["beta"])))
    ),
)


def logistic_data(key):
    one, two, three = jax.random.split(key, 3)
    beta, x = jax.random.normal(one, (SLOPES,)), jax.random.normal(two, (ROWS, SLOPES))
    y = jnp.where(jax.random.uniform(three, (ROWS,)) < jax.nn.sigmoid(x @ beta), 1.0, -1.0)
    return beta[0], (x, y)


CALIBRATED = {
    "gamma": (SHAPE_MODEL, shape_data, lambda theta: theta["shape"]),
    "logistic": (LOGISTIC, logistic_data, lambda theta: theta["beta"][:, 0]),
}


def ranks(name, num=160):
    """Counts in eight bins of the ranks by `fit`, and by a guide that is spoiled: half as far from
    its centre.
    """
    model, simulate, quantity = CALIBRATED[name]
    found = []
    for key in jax.random.split(jax.random.key(40), num):
        truth, data = simulate(key)
        fit = minisvi.fit(key, model, *data, progress_bar=False, num_draws=2000)
        draws = np.asarray(quantity(fit.draws.resample(key, 99).theta))
        centre = np.median(draws)
        found.append([np.sum(x < truth) for x in (draws, centre + 0.5 * (draws - centre))])
    return [
        np.histogram(column, bins=np.linspace(-0.5, 99.5, 9))[0] for column in np.transpose(found)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", CALIBRATED)
def test_ranks_are_uniform_for_fit_and_not_for_a_spoiled_guide(name):
    honest, spoiled = ranks(name)
    assert chisquare(honest).pvalue > 1e-3
    assert chisquare(spoiled).pvalue < 1e-6


@pytest.mark.parametrize(
    ("max_dense", "shape"), standing_for([(1, (2,)), (2, (2, 2))], (2, (2, 2)))
)
def test_the_last_stage_starts_from_a_matrix_only_where_there_is_room_for_one(
    max_dense, shape, key, monkeypatch
):
    # From the mean field, whose ELBO is the higher by what the caller says.
    started, around = [], last_stage._around
    monkeypatch.setattr(cascade, "MAX_DENSE", max_dense)
    monkeypatch.setattr(last_stage, "MAX_DENSE", max_dense)
    monkeypatch.setattr(last_stage, "RANK", 1)
    monkeypatch.setattr(last_stage, "stochastic", lambda *_, **__: iter(()))
    monkeypatch.setattr(
        last_stage,
        "_around",
        lambda guide, key, gaussian: started.append(gaussian.cov) or around(guide, key, gaussian),
    )
    model, verdicts = (
        Model({"x": real(2)}, lambda theta: norm.logpdf(theta["x"], 3.0, 2.0).sum()),
        [],
    )
    settings = Settings(None, None, np.inf, None, 60.0, StageDisplay(False))
    for _ in cascade.cascade(key, model, (), settings, verdicts):
        verdicts.append(
            SimpleNamespace(
                level="not trusted",
                of_weights="not trusted",
                ess=0.0,
                spacing=0.0,
                elbo=-np.inf,
                misses_a_mode=lambda: False,
            )
        )
    assert started[-1].shape == shape
    assert np.allclose(started[-1], 4.0 if len(shape) == 1 else 4.0 * np.eye(2), rtol=1e-3)

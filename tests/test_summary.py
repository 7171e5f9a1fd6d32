"""The table of a posterior: against repeated draws, sums by hand and closed forms, and as it is
printed.
"""

import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from minisvi import Draws, Fit, Model, Posterior, mean_field, positive, real
from minisvi.posterior.draws import plain
from minisvi.posterior.summary import COLUMNS, Summary, summarise

WEIGHTS = np.array([1.0, 4.0, 0.0, 2.0, 3.0])
X = np.array([[1007.0, -3.0], [1001.0, 2.0], [1e6, -1e6], [1003.0, 0.5], [1002.0, 9.0]])
LOG_WEIGHTS = np.log(WEIGHTS, out=np.full(5, -np.inf), where=WEIGHTS > 0)
REPEATED = np.repeat(X, WEIGHTS.astype(int), axis=0)


def columns_of(summary, column):
    return np.array([row[column] for row in summary.as_dict().values()])


def test_every_scalar_entry_has_a_row_by_its_name():
    w, nothing = np.zeros((5, 2, 3)), np.zeros((5, 0, 4))
    theta = {"mu": X[:, 0], "net": {"w": w}, "effects": X, "nothing": nothing}
    summary = Draws(theta, LOG_WEIGHTS).summary()
    kernel = [f"net.w[{i}, {j}]" for i in range(2) for j in range(3)]
    assert list(summary.as_dict()) == ["effects[0]", "effects[1]", "mu", *kernel]
    assert summary["mu"] == summary["effects[0]"] == summary.as_dict()["mu"]
    assert tuple(summary["mu"]) == COLUMNS
    assert list(summarise(X, LOG_WEIGHTS).as_dict()) == ["value[0]", "value[1]"]
    with pytest.raises(
        KeyError,
        match=r"no entry `w` in the summary: expected one of effects\[0\], effects\[1\], mu, net",
    ):
        summary["w"]


def test_integer_weights_are_repeated_draws():
    summary = summarise(X, LOG_WEIGHTS)
    np.testing.assert_allclose(columns_of(summary, "mean"), REPEATED.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(columns_of(summary, "sd"), REPEATED.std(axis=0), rtol=1e-12)


def test_ess_and_error_by_hand():
    # Of 3 and -1 with weights 1/4 and 3/4: mean 0, variance 3, squared error 9/16 + 9/16 = 9/8, and
    # z^2 is 3 and 1/3.
    row = summarise(np.array([3.0, -1.0]), np.log([0.25, 0.75]))["value"]
    assert row["ESS"] == pytest.approx(3 / (9 / 8))
    assert row["error"] == pytest.approx(max((3 / 8) ** 0.5, 0.5 * (0.5**2 + 0.5**2) ** 0.5))
    heavy = np.array([10.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    row = summarise(heavy, np.zeros(10))[
        "value"
    ]  # z is 3 once and -1/3 nine times: the sd is less certain than the mean
    assert row["ESS"] == pytest.approx(10)
    assert row["error"] == pytest.approx(0.5 * (8**2 + 9 * (8 / 9) ** 2) ** 0.5 / 10)


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x)))


def test_errors_are_the_sums_of_their_definitions():
    rng = np.random.default_rng(5)
    x, log_weights = 100 + rng.normal(size=(300, 2)) ** 3, log_softmax(rng.normal(size=300))
    summary = summarise(x, log_weights)
    for entry in (0, 1):
        weights = np.exp(log_weights)
        mean = np.average(x[:, entry], weights=weights)
        variance = np.average((x[:, entry] - mean) ** 2, weights=weights)
        of_mean = np.sum(weights**2 * (x[:, entry] - mean) ** 2) / variance
        of_sd = np.sum(weights**2 * ((x[:, entry] - mean) ** 2 / variance - 1) ** 2) / 4
        assert of_sd > of_mean  # so that the column has the larger of two different ones
        row = summary[f"value[{entry}]"]
        assert row["ESS"] == pytest.approx(1 / of_mean, rel=1e-10)
        assert row["error"] == pytest.approx(of_sd**0.5, rel=1e-10)


def test_quantiles_are_those_of_the_draws():
    rng = np.random.default_rng(6)
    x, log_weights = 1000 + 5 * rng.normal(size=50), log_softmax(3 * rng.normal(size=50))
    row = summarise(x, log_weights)["value"]
    got = [row["5%"], row["50%"], row["95%"]]
    np.testing.assert_array_equal(got, Draws(x, log_weights).quantiles([0.05, 0.5, 0.95]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_draw_without_weight_changes_nothing_and_one_with_weight_always_counts(bad):
    without, with_weight = X.copy(), X.copy()
    without[2], with_weight[3] = bad, bad
    assert summarise(without, LOG_WEIGHTS) == summarise(X[WEIGHTS > 0], LOG_WEIGHTS[WEIGHTS > 0])
    assert not np.any(np.isfinite(columns_of(summarise(with_weight, LOG_WEIGHTS), "mean")))


def test_a_weight_that_jax_takes_for_zero_is_zero():
    x, tiny = np.array([3.0, np.nan, 5.0]), np.log(np.finfo(jnp.result_type(float)).tiny) - 1
    draws = Draws(x, np.array([0.0, tiny, 0.0]))
    assert draws.mean() == draws.median() == draws.summary()["value"]["mean"] == 4.0
    assert np.isnan(Draws(x, np.array([0.0, tiny + 3, 0.0])).mean())


def test_constants_have_no_spread_and_the_ess_of_the_weights():
    ones, log_weights = np.full((50, 1), 0.1), np.random.default_rng(4).normal(size=50)
    row = summarise(ones, log_weights)["value[0]"]
    assert [row[column] for column in ("mean", "sd", "5%", "50%", "95%", "error")] == [
        0.1,
        0.0,
        0.1,
        0.1,
        0.1,
        0.0,
    ]
    weights = np.exp(log_weights)
    assert row["ESS"] == pytest.approx(np.sum(weights) ** 2 / np.sum(weights**2))
    assert summarise(ones, np.zeros(50))["value[0]"]["ESS"] == pytest.approx(50)


def test_bools_and_small_integers():
    theta = {"above": X[:, 1] > 1.0, "n": np.array([3, 1, 7, 0, 2], np.uint8)}
    summary = Draws(theta, LOG_WEIGHTS).summary()
    assert summary["above"]["mean"] == pytest.approx(0.7)
    assert (summary["n"]["mean"], summary["n"]["sd"]) == pytest.approx((1.3, 0.9))


def test_equal_draws_have_their_number_as_ess():
    x = np.random.default_rng(1).normal(-50.0, 2.0, 400)
    row = plain(x, 400).summary()["value"]
    assert row["ESS"] == pytest.approx(400)
    assert row["error"] == pytest.approx(0.05)


# As it is printed.


def test_the_table():
    rows = {
        "mu": dict(zip(COLUMNS, (1987.31415, 0.25, 1986.9, -0.00004, 1987.7, 19999.6, 0.00707))),
        "long.name[0]": dict(zip(COLUMNS, (0.0, 12.3456, -20.0, 0.0, 20.0, 31.4, 0.1782))),
        "tiny": dict(zip(COLUMNS, (2e-9, 1e-10, 1.8e-9, 2e-9, 2.2e-9, 100.0, 0.1))),
        "one": dict(zip(COLUMNS, (1.0, 0.0, 1.0, 1.0, 1.0, 100.0, 0.0))),
        "lost": dict(zip(COLUMNS, (np.inf, np.nan, 1.0, 1.0, np.inf, np.nan, np.nan))),
    }
    expected = """
                   mean         sd         5%        50%        95%    ESS  error
mu             1987.314      0.250   1986.900      0.000   1987.700  20000  0.007
long.name[0]        0.0       12.3      -20.0        0.0       20.0     31  0.178
tiny          2.000e-09  1.000e-10  1.800e-09  2.000e-09  2.200e-09    100  0.100
one                   1          0          1          1          1    100  0.000
lost                inf        nan          1          1        inf    nan    nan
"""
    assert str(Summary(rows)) == expected[1:-1]


def test_long_tables_are_cut_in_the_middle():
    row = dict.fromkeys(COLUMNS, 1.0)
    lines = str(Summary({f"w[{i}]": row for i in range(64)})).splitlines()
    assert len(lines) == 1 + 60 + 1
    assert lines[30].startswith("w[29] ")
    assert lines[31] == "... 4 rows are left out; `as_dict()` has them ..."
    assert lines[32].startswith("w[34] ")
    assert len(str(Summary({f"w[{i}]": row for i in range(60)})).splitlines()) == 61
    with pytest.raises(
        KeyError, match=r"expected one of w\[0\], .*, w\[4\], \.\.\., w\[59\], .*, w\[63\]"
    ):
        Summary({f"w[{i}]": row for i in range(64)})["w"]


def test_no_latents():
    summary = plain({}, 5).summary()
    assert summary.as_dict() == {}
    assert str(summary).split() == list(COLUMNS)


def test_to_dataframe():
    pandas = pytest.importorskip("pandas")
    summary = summarise(X, LOG_WEIGHTS)
    frame = summary.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.index) == ["value[0]", "value[1]"]
    assert frame.T.to_dict() == summary.as_dict()
    assert list(Summary({}).to_dataframe().columns) == list(COLUMNS)


def test_without_pandas_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="`to_dataframe` needs pandas: pip install pandas"):
        Summary({}).to_dataframe()


# Where it is asked for.

LATENTS = {"a": real(2), "tau": positive()}
PARAMS = {"loc": jnp.array([5.0, -2.0, 0.7]), "log_scale": jnp.log(jnp.array([3.0, 0.5, 0.2]))}
SVI = SimpleNamespace(model=Model(LATENTS, lambda theta, y: jnp.sum(y)), guide=mean_field(LATENTS))


def test_a_posterior_of_an_svi_and_its_result(key):
    posterior = Posterior.of(SVI, SimpleNamespace(params=PARAMS), X, WEIGHTS)
    assert posterior == Posterior(SVI.model, SVI.guide, PARAMS, posterior.data)
    assert posterior.data[0] is X
    assert posterior.data[1] is WEIGHTS
    summary = posterior.summary(key)
    assert columns_of(summary, "ESS") == pytest.approx(10_000)
    assert summary == posterior.draws(key, 10_000).summary()
    error = np.array([3.0, 0.5]) / 100
    assert np.all(np.abs(columns_of(summary, "mean")[:2] - [5.0, -2.0]) < 4 * error)
    assert abs(summary["tau"]["50%"] / np.exp(0.7) - 1) < 4 * 1.26 * 0.2 / 100
    assert posterior.summary(key, 300)["tau"]["ESS"] == pytest.approx(300)


def test_the_summary_of_a_fit_is_that_of_its_weighted_draws():
    draws = Draws({"x": X}, LOG_WEIGHTS)
    judged = SimpleNamespace(
        draws=draws, verdict=SimpleNamespace(level="good", elbo=-3.0, unreached=())
    )
    fit = Fit(SVI.model, (), (SimpleNamespace(judged=judged),), None)
    assert fit.summary() == draws.summary()


def test_a_table_ends_with_the_moments_that_the_draws_do_not_give():
    summary = Summary({"a": dict.fromkeys(COLUMNS, 1.0)})
    assert "not given" not in str(summary)
    marked = Summary(summary.rows, ("the mean of `a`", "the sd of `a`"))
    assert str(marked).startswith(str(summary))
    assert str(marked).endswith("not given by these draws: the mean of `a`, the sd of `a`")

"""The engines by name. Nothing is imported before a cell needs it."""

import importlib
import importlib.util
from typing import NamedTuple


class Engine(NamedTuple):
    """Where an engine is: a module here and its method, or an environment of its own."""

    library: str
    method: str
    module: str = ""
    package: str = ""  # what has to be importable for the module
    environment: str = ""


def of_module(
    library: str, module: str, package: str, methods: tuple[str, ...]
) -> dict[str, Engine]:
    return {f"{library} {m}": Engine(library, m, module, package) for m in methods}


def of_environment(library: str, environment: str, methods: tuple[str, ...]) -> dict[str, Engine]:
    return {f"{library} {m}": Engine(library, m, environment=environment) for m in methods}


MINISVI = ("mean field", "full rank", "low rank", "coupling flow")
NUMPYRO = (
    "AutoNormal",
    "AutoMultivariateNormal",
    "AutoLowRankMultivariateNormal",
    "AutoIAFNormal",
    "AutoBNAFNormal",
    "NUTS",
)
BLACKJAX = ("Pathfinder", "mean field", "full rank", "NUTS")

ENGINES: dict[str, Engine] = (
    {"minisvi.fit": Engine("minisvi", "fit", "with_minisvi", "minisvi")}
    | of_module("minisvi", "with_minisvi", "minisvi", MINISVI)
    | of_module("NumPyro", "with_numpyro", "numpyro", NUMPYRO)
    | of_module("BlackJAX", "with_blackjax", "blackjax", BLACKJAX)
    | of_module("TFP", "with_tfp", "tensorflow_probability", ("mean field", "full rank"))
    | of_module("FlowJAX", "with_flowjax", "flowjax", ("autoregressive flow",))
    | of_environment("Pyro", "pyro", ("AutoNormal", "AutoMultivariateNormal"))
    | of_environment("PyMC", "pymc", ("ADVI", "full-rank ADVI"))
    | of_environment("pymc-extras", "pymc", ("Pathfinder", "DADVI"))
)


def installed(engine: Engine) -> bool:
    return importlib.util.find_spec(engine.package) is not None


def load(engine: Engine) -> object:
    """The method of an engine that has a module here."""
    return importlib.import_module(f"field_engines.{engine.module}").METHODS[engine.method]

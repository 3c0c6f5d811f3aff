"""The import contracts of pyproject.toml hold, and each of them catches a violation."""

import copy
import tomllib

import grimp
import pytest
from conftest import ROOT
from importlinter.configuration import configure
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.independence import IndependenceContract
from importlinter.contracts.layers import LayersContract

configure()
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TYPES = {
    "forbidden": ForbiddenContract,
    "independence": IndependenceContract,
    "layers": LayersContract,
}
GRAPH = grimp.build_graph("pipeline", include_external_packages=True, cache_dir=None)
LAYERS, STAGES, COMMANDS, MLFLOW, CORE, TORCHVISION = (
    contract["name"] for contract in CONFIG["tool"]["importlinter"]["contracts"]
)


def broken_contracts(graph: grimp.ImportGraph) -> set[str]:
    session = {"root_packages": ["pipeline"], "include_external_packages": "True"}
    broken = set()
    for options in CONFIG["tool"]["importlinter"]["contracts"]:
        as_read = {key: str(x) if isinstance(x, bool) else x for key, x in options.items()}
        contract = TYPES[options["type"]](options["name"], session, as_read)
        if not contract.check(copy.deepcopy(graph), verbose=False).kept:
            broken.add(options["name"])
    return broken


def test_the_contracts_hold():
    assert broken_contracts(GRAPH) == set()


@pytest.mark.parametrize(
    ("importer", "imported", "contract"),
    [
        ("pipeline.errors", "pipeline.params", LAYERS),
        ("pipeline.model.objective", "pipeline.training.fit", LAYERS),
        ("pipeline.tracking.results", "pipeline.evaluation.bounds", LAYERS),
        ("pipeline.stages.train", "pipeline.commands.compare", LAYERS),
        ("pipeline.stages.train", "pipeline.stages.evaluate", STAGES),
        ("pipeline.commands.compare", "pipeline.commands.reproduce", COMMANDS),
        ("pipeline.stages.train", "mlflow", MLFLOW),
        ("pipeline.runtime.pending_run", "mlflow", MLFLOW),
        ("pipeline.model.vae", "dvc", CORE),
        ("pipeline.evaluation.bounds", "pipeline.params", CORE),
        ("pipeline.figures.grids", "torchvision", TORCHVISION),
    ],
)
def test_a_forbidden_import_breaks_its_contract(importer, imported, contract):
    graph = copy.deepcopy(GRAPH)
    assert importer in graph.modules
    if imported not in graph.modules:
        graph.add_module(imported, is_squashed=True)
    graph.add_import(importer=importer, imported=imported)
    assert contract in broken_contracts(graph)

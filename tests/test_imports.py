"""The import contract: it holds, and it fails where something is planted."""

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
BARE_GPU_MACHINE = {
    "torch", "numpy", "pandas", "matplotlib", "PIL", "safetensors", "sklearn", "threadpoolctl", "tqdm",
}  # fmt: skip


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([lint_imports, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def house(tmp_path):
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contract_holds(house):
    done = lint(house)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("vae/fit.py", "import mlflow"),
        ("vae/model.py", "from dvc.api import params_show"),
        ("vae/mnist.py", "from pipeline.params import load_params"),
        ("vae/model.py", "from pipeline.model.objective import elbo_terms"),
        ("vae/metrics.py", "from pipeline.training.fit import fit"),
        ("tracking.py", "from pipeline.model.vae import VAE"),
        ("train.py", "import mlflow"),
        ("train.py", "from pipeline.stages.evaluate import main as evaluate_main"),
        ("evaluate.py", "from ruamel.yaml import YAML"),
        ("comparison/statistics.py", "import mlflow"),
        ("comparison/runs.py", "from pipeline.model.vae import VAE"),
        ("vae/plots.py", "from pipeline.evaluation.bounds import elbo"),
    ],
)
def test_what_is_planted_breaks_it(house, module, line):
    path = house / "pipeline" / module
    path.write_text(f"{line}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    done = lint(house)
    assert done.returncode != 0 and "BROKEN" in done.stdout, done.stdout


def test_the_core_imports_only_what_a_bare_gpu_machine_has():
    graph = grimp.build_graph("pipeline", include_external_packages=True, cache_dir=None)
    core = {"pipeline.vae", *graph.find_descendants("pipeline.vae")}
    outside = {name for module in core for name in graph.find_modules_directly_imported_by(module)} - core
    assert outside - {"pipeline.errors"} - set(sys.stdlib_module_names) <= BARE_GPU_MACHINE

"""The documents are held to the committed results, the Makefile, the commands and the files."""

import json
import re
import statistics

import pytest
from conftest import ROOT, committed

from pipeline.__main__ import COMMANDS
from pipeline.params import Params

DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"]
DOCUMENTS += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
TEXT = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}
README = TEXT["README.md"]
EVERYTHING = "\n".join(TEXT.values())
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TEST = json.loads(committed("reports/evaluation.json"))["test"]
CPU = json.loads(committed("reports/benchmarks/cpu.json"))


def find_all(pattern: str, text: str = EVERYTHING) -> list[str]:
    return sorted(set(re.findall(pattern, text)))


def test_the_row_of_the_default_run_is_the_committed_evaluation():
    header, row = re.search(r"^\| run (\|.*)\n.*\n\| `make repro` (\|.*)$", README, re.M).groups()
    names = [name.removeprefix("test/") for name in re.split(r"[ |]+", header) if name]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(names) == len(cells) >= 4
    for name, cell in zip(names, cells, strict=True):
        value, _, error = cell.partition(" ± ")
        assert value == (f"{TEST[name]:.2f}" if "." in value else str(TEST[name])), name
        assert not error or error == f"{TEST[f'{name}_se']:.2f}", name


def test_the_default_run_is_as_good_as_the_original_script():
    """The script, with 60,000 training images: 100.61 nats after 150 epochs."""
    assert TEST["num_images"] == 10_000
    assert 99.5 < TEST["neg_elbo"] <= 101.03
    assert TEST["nll"] == pytest.approx(95.56, abs=0.3)


def test_every_metric_is_explained():
    names = {name.removesuffix("_se") for name in TEST}
    assert [name for name in names if f"/{name}`" not in TEXT["docs/metrics.md"]] == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_measured_speed_is_quoted(precision):
    training = CPU["training"]
    faster = training["times_as_fast_as_the_script"][precision]["median"]
    epoch = statistics.median(training["seconds"][precision])
    text = README + TEXT["docs/performance.md"]
    assert f"{faster:.1f}" in text
    assert f"{epoch:.2f} s" in text


def test_the_readme_has_at_most_1000_words_and_the_architecture_120_lines():
    assert len(README.split()) <= 1000
    assert len(TEXT["ARCHITECTURE.md"].splitlines()) <= 120


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_linked_file_exists(name):
    folder = (ROOT / name).parent
    for link in find_all(r"\]\(((?!https?:|#)[^)#]+)", TEXT[name]):
        assert (folder / link).exists(), link


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_named_file_of_the_package_exists(name):
    for path in find_all(r"`((?:pipeline|tests|benchmarks)/[\w/.]+)`", TEXT[name]):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("target", find_all(r"[`\n]make ([a-z-]+)"))
def test_every_named_make_target_exists(target):
    assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE)


@pytest.mark.parametrize("command", find_all(r"python -m pipeline ([a-z-]+)"))
def test_every_named_command_exists(command):
    assert command in COMMANDS


@pytest.mark.parametrize("key", find_all(r"-S (\w+)="))
def test_every_parameter_that_is_set_exists(key):
    assert key in Params.model_fields

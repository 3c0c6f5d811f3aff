"""Which runs form a configuration, what it is called, and which of its values are compared."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.fake_experiments import PARAMS, PROTOCOL, metrics_of, per_image

from pipeline.commands.comparison import charts, tables
from pipeline.commands.comparison.configurations import Comparison, compare
from pipeline.commands.comparison.runs import Run
from pipeline.runtime.git import Experiment


def run(
    name: str, effect: float = 0.0, *, code: str = "x", protocol: dict = PROTOCOL, **params
) -> Run:
    params = PARAMS | params
    values = per_image(effect, params["seed"])
    return Run(
        name, Experiment(name, "", "0" * 40, 0), params=params, code={"pipeline/model": code},
        metrics=metrics_of(values), classifier={"sha256": "c"},
        protocol={"measure": protocol["likelihood"], **protocol},
        per_image=values.astype("float64"),
    )  # fmt: skip


def members(comparison: Comparison) -> dict[str, list[str]]:
    """Names of the counted runs of each configuration, the best first."""
    names = comparison.counted.groupby("label", sort=False)["name"].agg(list)
    return names.loc[comparison.labels].to_dict()


def test_runs_that_differ_in_seed_device_or_sample_every_are_one_configuration():
    wide = [run("wide", -3, h_dim=800), run("w1", -3, h_dim=800, seed=1, device="cpu")]
    base = [run("HEAD"), run("b", seed=10, sample_every=1), run("a", seed=2)]
    comparison = compare([*base, *wide], "HEAD")
    assert members(comparison) == {"h_dim=800": ["wide", "w1"], "HEAD": ["HEAD", "a", "b"]}
    assert list(comparison.params.columns) == ["h_dim"] and comparison.leading == "nll"
    assert tables.notes(comparison, [*base, *wide]) == {} and tables.caveat(comparison) == ""


def test_spread_and_interval_are_over_seeds_if_there_are_two():
    head, wide = [run("HEAD"), run("b", seed=1)], run("wide", -3, h_dim=800)
    comparison = compare([*head, wide], "HEAD")
    seeds = [one.metrics["nll"] for one in head]
    assert comparison.mean.at["HEAD", "nll"] == pytest.approx(np.mean(seeds))
    assert comparison.spread.at["HEAD", "nll"] == pytest.approx(np.std(seeds, ddof=1))
    assert comparison.spread.at["h_dim=800", "nll"] == pytest.approx(wide.metrics["nll_se"])
    gap = comparison.differences.at["h_dim=800", "nll"]
    assert gap.seeds is None and gap.sign == -1 and tables.caveat(comparison)
    assert "one seed" in tables.differences(comparison).at["h_dim=800", "nll"]
    both = compare([*head, wide, run("w1", -3, h_dim=800, seed=1)], "HEAD")
    gap = both.differences.at["h_dim=800", "nll"]
    assert gap.seeds is not None and abs(gap.value + 3) <= gap.half


def test_other_code_is_another_configuration_unless_it_is_known_to_change_no_result():
    runs = [run("HEAD"), run("beta", 1, code="y"), run("beta-1", 1, code="y", seed=1)]
    comparison = compare(runs, "HEAD")
    assert members(comparison) == {"HEAD": ["HEAD"], "beta": ["beta", "beta-1"]}
    (note,) = tables.notes(comparison, runs)
    assert "pipeline/model" in note
    runs = [run("HEAD"), run("comment", code="y"), run("seed-1", code="y", seed=1)]
    assert members(compare(runs, "HEAD")) == {"HEAD": ["HEAD", "seed-1"]}
    runs += [run("again", code="z", seed=1), run("seed-2", code="z", seed=2)]
    assert members(compare(runs, "HEAD")) == {"HEAD": ["HEAD", "seed-1", "seed-2"]}
    runs += [run("other", 1, code="w")]
    grouped = members(compare(runs, "HEAD"))
    assert grouped == {"HEAD": ["HEAD", "seed-1", "seed-2"], "other": ["other"]}
    runs = [run("HEAD"), run("beta-1", 1, code="y", seed=1)]
    assert members(compare(runs, "HEAD")) == {"HEAD": ["HEAD"], "beta-1": ["beta-1"]}


def test_of_two_results_of_one_seed_the_one_with_per_image_values_counts():
    other = run("HEAD", 0.3)
    other.per_image = other.per_image.iloc[:0, :0]
    runs = [other, run("workspace"), run("wide", -3, h_dim=800)]
    comparison = compare(runs, "HEAD")
    assert members(comparison) == {"h_dim=800": ["wide"], "HEAD": ["workspace"]}
    assert tables.notes(comparison, runs) == {tables.REPEATED: "HEAD"}
    assert comparison.differences.at["h_dim=800", "nll"].sign == -1


def test_a_parameter_that_an_older_run_lacks_does_not_differ():
    old = run("old", z_dim=2)
    del old.params["eval_samples"]
    assert {*compare([run("HEAD"), old], "HEAD").labels} == {"HEAD", "z_dim=2"}


@pytest.mark.parametrize(
    ("change", "compared"),
    [
        ({}, {"nll", "nll_binarized"}),
        ({"images": "c"}, {"nll_binarized"}),
        ({"binarization": "c"}, {"nll"}),
        ({"likelihood": "laplace"}, {"nll_binarized"}),
        ({"eval_samples": 5}, {"nll", "nll_binarized"}),
    ],
)
def test_only_values_of_the_same_images_and_density_are_compared(change, compared):
    runs = [run("HEAD"), run("other", 1, z_dim=2, protocol=PROTOCOL | change)]
    comparison = compare(runs, "HEAD")
    row = comparison.differences.loc["z_dim=2", ["nll", "nll_binarized"]]
    assert set(row.dropna().index) == compared
    assert len(tables.notes(comparison, runs)) == len(change)


def test_two_densities_of_one_measure_are_compared():
    names = {"HEAD": "gaussian", "cb": "continuous_bernoulli"}
    runs = [
        run(key, likelihood=name, protocol=PROTOCOL | {"likelihood": name, "measure": "lebesgue"})
        for key, name in names.items()
    ]
    comparison = compare(runs, "HEAD")
    gap = comparison.differences.at["likelihood=continuous_bernoulli", "nll"]
    assert comparison.leading == "nll" and gap is not None
    assert tables.notes(comparison, runs) == {}


def test_different_likelihoods_are_ranked_by_the_binarized_images():
    laplace = run("l", -5, likelihood="laplace", protocol=PROTOCOL | {"likelihood": "laplace"})
    protocol = PROTOCOL | {"images": "b", "measure": "binary pixels"}
    binary = run("b", -5, binarize="fixed", protocol=protocol)
    for other in (laplace, binary):
        comparison = compare([run("HEAD"), other], "HEAD")
        assert comparison.leading == "nll_binarized" and comparison.labels[-1] == "HEAD"
        assert " better" in tables.answer(comparison)
    old = run("old", z_dim=2)
    old.metrics = {"neg_elbo": 150.0}
    assert compare([run("HEAD"), old], "HEAD").leading == "neg_elbo"


@pytest.mark.parametrize(("effect", "verdict"), [(-1, "better"), (1, "worse")])
def test_the_answer_names_the_best_configuration_and_its_difference(effect, verdict):
    comparison = compare([run("HEAD"), run("wide", effect, h_dim=800)], "HEAD")
    gap = tables.differences(comparison).at["h_dim=800", "nll"]
    assert "h_dim=800" in tables.answer(comparison) and gap in tables.answer(comparison)
    assert gap.endswith(f"{verdict} (one seed)")


def test_the_terminal_shows_ascii_without_escape_sequences():
    text = tables.terminal(compare([run("HEAD"), run("\x1b[31mred\n", 1, h_dim=800)], "HEAD"))
    assert text.isascii() and "\x1b" not in text and len(text.splitlines()) == 3


def test_a_value_is_shown_with_its_spread():
    other = run("HEAD").metrics
    comparison = compare([run("HEAD"), run("wide", 1, h_dim=800)], "HEAD")
    shown = f"{other['nll']:.2f} ± {other['nll_se']:.2f}"
    assert tables.values(comparison).at["HEAD", "nll"] == shown


def test_points_of_a_chart_are_at_the_means_with_the_spread_as_error():
    comparison = compare([run("HEAD"), run("wide", 1, h_dim=800)], "HEAD")
    points, bars = charts.plane(comparison).data, charts.dots(comparison, "nll").data
    for label, point, bar in zip(["HEAD", "h_dim=800"], points, bars, strict=True):
        mean, spread = comparison.mean.loc[label], comparison.spread.loc[label]
        assert point["name"] == bar["name"] == label
        assert (point["x"], point["y"]) == ([mean["kl"]], [mean["recon"]])
        assert (bar["x"], bar["error_x"]["array"]) == ([mean["nll"]], [spread["nll"]])


def test_a_curve_is_that_of_its_run_and_of_validation_images_if_there_are_any():
    runs = [run("HEAD"), run("wide", 1, h_dim=800), run("all", 2, h_dim=50)]
    contents = {"HEAD": "5,8", "wide": "6,7", "all": "9,"}  # without validation images
    for number, one in enumerate(runs):
        one.experiment = replace(one.experiment, commit=str(number))
    comparison, history = compare(runs, "HEAD"), charts.CURVES[0]
    blobs = {
        (one.experiment.commit, history.path):
            f"epoch,train/neg_elbo,val/neg_elbo\n1,{contents[one.name]}\n".encode()
        for one in runs
    }  # fmt: skip
    lines = charts.overlay(history, comparison, comparison.labels, blobs).data
    found = {line["name"]: (line["y"], line["line"]["dash"]) for line in lines}
    assert found == {"HEAD": ([8], "solid"), "wide": ([7], "solid"), "all": ([9], "dash")}

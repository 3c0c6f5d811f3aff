"""Which runs are one configuration, what each is called, and what a reader is told."""

import numpy as np
from helpers.fake_experiments import PARAMS, PROTOCOL, metrics_of, per_image

from pipeline.commands.comparison.groups import Comparison, compare
from pipeline.commands.comparison.quantities import QUANTITIES
from pipeline.commands.comparison.remarks import notes
from pipeline.commands.comparison.runs import Run
from pipeline.commands.comparison.terminal import table
from pipeline.commands.comparison.wording import answer, between, caveat, said


def run(
    name: str, effect: float = 0.0, *, code: str = "x", protocol: dict = PROTOCOL, judge: str = "j", **params
) -> Run:
    """A run of made-up results; what differs from the others is `effect`, and a little by its seed."""
    given = PARAMS | params
    values = per_image(effect, given["seed"])
    return Run(
        name, "0" * 40, params=given, code={"pipeline/stages/train.py": code, "pipeline/stages/evaluate.py": "same"},
        metrics=metrics_of(values, given["seed"]), judge={"sha256": judge, "floor": {}},
        per_image={name: column.astype("float64") for name, column in values.items()}, protocol=protocol,
    )  # fmt: skip


def told(comparison: Comparison) -> str:
    return "\n".join(f"{name}: {note}" for name, note in notes(comparison))


def shape(comparison: Comparison) -> dict[str, list[str]]:
    return {group.label: [member.name for member in group.runs] for group in comparison.groups}


def test_runs_that_differ_in_their_seed_alone_are_one_configuration():
    runs = [
        run("HEAD"),
        run("b", seed=2),
        run("a", seed=10),
        run("wide", -3, h_dim=800),
        run("w1", -3, h_dim=800, seed=1),
    ]
    comparison = compare(runs, "HEAD")
    assert shape(comparison) == {"h_dim=800": ["wide", "w1"], "HEAD": ["HEAD", "b", "a"]}, "the best one first"
    assert comparison.differing == ["h_dim"] and comparison.leading == "nll" and not notes(comparison)
    wide, base = comparison.groups
    means = [member.metrics["nll"] for member in wide.runs]
    assert wide.summary("nll").mean == np.mean(means) and wide.summary("nll").sd == np.std(means, ddof=1)
    gap = comparison.difference(wide, "nll")
    assert gap.seeds is not None and abs(gap.value + 3) <= gap.half and gap.sign == -1
    assert comparison.difference(base, "nll") is None
    assert [(one.name, first.name) for one, first, _ in comparison.seeds(base)] == [("b", "HEAD"), ("a", "HEAD")]
    assert caveat(comparison) == ""


def test_seeds_that_differ_by_more_than_the_images_explain_are_told():
    comparison = compare([run("HEAD"), run("other", seed=1)], "HEAD")
    ((_, _, gap),) = comparison.seeds(comparison.baseline)
    assert gap.sign != 0 and "more than the test images explain" in between(gap)
    same = run("same", seed=1)
    same.per_image["nll"] = comparison.baseline.runs[0].per_image["nll"] + np.tile([0.5, -0.5], 200)
    ((_, _, gap),) = compare([run("HEAD"), same], "HEAD").seeds(compare([run("HEAD"), same], "HEAD").baseline)
    assert gap.sign == 0 and "covers zero" in between(gap)


def test_a_change_of_the_code_is_not_taken_for_a_change_of_the_seed():
    comparison = compare([run("HEAD"), run("edited", seed=1, code="y")], "HEAD")
    assert set(shape(comparison)) == {"HEAD", "edited"}
    assert "edited: ran other code than HEAD: pipeline/stages/train.py" in told(comparison)


def test_the_same_results_twice_count_once():
    comparison = compare([run("HEAD"), run("again"), run("elsewhere", 0.3)], "HEAD")
    assert [len(group.runs) for group in comparison.groups] == [1] and comparison.groups[0].names[1:] == [
        "again",
        "elsewhere",
    ]
    assert "again has the results of HEAD, and counts once" in told(comparison)
    assert "elsewhere has the parameters, seed and code of HEAD, and other results" in told(comparison)


def test_a_parameter_that_an_older_version_did_not_have_does_not_differ():
    old = run("old", z_dim=2)
    old.params = {key: value for key, value in old.params.items() if not key.startswith("eval_")}
    assert compare([run("HEAD"), old], "HEAD").differing == ["z_dim"]


def test_only_what_was_measured_alike_is_paired():
    other = {
        "images": run("images", 1, z_dim=2, protocol=PROTOCOL | {"images": "c"}),
        "binarization": run("binarization", 1, z_dim=3, protocol=PROTOCOL | {"binarization": "c"}),
        "draws": run("draws", 1, z_dim=4, protocol=PROTOCOL | {"eval_samples": 5}),
        "silent": run("silent", 1, z_dim=5, protocol={}),
        "judge": run("judge", 1, z_dim=6, judge="k"),
    }  # fmt: skip
    comparison = compare([run("HEAD"), *other.values()], "HEAD")
    paired = {
        group.runs[0].name: [name for name in ("nll", "nll_binarized") if comparison.difference(group, name)]
        for group in comparison.groups
        if group is not comparison.baseline
    }
    both = ["nll", "nll_binarized"]
    assert paired == {"images": [], "binarization": ["nll"], "draws": both, "silent": [], "judge": both}
    remarks = told(comparison)
    assert "z_dim=2: was measured on other images than HEAD" in remarks
    assert "z_dim=3: was measured with another binarization" in remarks
    assert "z_dim=4: −log p(x) is from 5 draws of z an image, of HEAD from 500" in remarks
    assert "z_dim=6: FD, precision, recall, density and coverage are of another judge" in remarks


def test_one_seed_says_so_with_what_seeds_are_known_to_differ_by():
    runs = [run("HEAD"), run("other", seed=1), run("wide", -0.02, h_dim=800)]
    comparison = compare(runs, "HEAD")
    wide = next(group for group in comparison.groups if group.label == "h_dim=800")
    gap = comparison.difference(wide, "nll")
    words = said(gap, QUANTITIES["nll"], comparison.seed_gap("nll"))
    assert (
        gap.seeds is None and "one seed" in words.detail and f"{comparison.seed_gap('nll'):.2f}" in caveat(comparison)
    )
    assert "(one seed)" in "\n".join(table(comparison))
    alone = compare([run("HEAD"), run("wide", -1, h_dim=800)], "HEAD")
    assert alone.seed_gap("nll") is None and "is not known" in caveat(alone)


def test_the_first_sentence():
    better = compare([run("HEAD"), run("wide", -1, h_dim=800)], "HEAD")
    assert answer(better).startswith("Best by −log p(x): h_dim=800 (wide), ")
    assert answer(better).endswith(" nats better than HEAD.")
    assert "HEAD" in answer(compare([run("HEAD"), run("wide", 1, h_dim=800)], "HEAD")).split(",")[0]
    same = run("wide", h_dim=800)
    same.per_image["nll"] = run("HEAD").per_image["nll"] - np.tile([0.51, -0.5], 200)
    same.metrics = same.metrics | {"nll": float(same.per_image["nll"].mean())}
    assert "not told apart from HEAD" in answer(compare([run("HEAD"), same], "HEAD"))
    old = run("old", 1, z_dim=2)
    old.metrics, old.per_image = {"neg_elbo": 150.0}, {}
    assert "by −ELBO: HEAD" in answer(compare([run("HEAD"), old], "HEAD"))


def test_what_a_terminal_would_obey_is_not_printed():
    lines = table(compare([run("HEAD"), run("\x1b[31mred\n", 1, h_dim=800)], "HEAD"))
    assert len(lines) == 3 and "\x1b" not in "".join(lines) and max(map(len, lines)) <= 118

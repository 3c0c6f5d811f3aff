"""`python -m pipeline compare` over fabricated and real experiments, and its page in a browser."""

import argparse
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from helpers.fake_experiments import PROTOCOL, FakeExperiments
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline.commands import compare
from pipeline.errors import UserError

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HOSTILE = "\"'><script>alert(1)"
VALUE = "</script><script>alert(2)</script>'\"&amp;%{x}"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> FakeExperiments:
    """Seeds, other protocols, a run with missing values, and hostile names."""
    repo = FakeExperiments(tmp_path_factory.mktemp("made"))
    repo.commit(repo.files())
    for seed in (1, 2):
        repo.experiment(f"seed-{seed}", repo.files(seed=seed))
    for seed in (0, 1, 2):
        repo.experiment(f"wide-{seed}", repo.files(-3, h_dim=800, seed=seed))
    lost = repo.files(0.5, h_dim=200)
    repo.experiment("lost", lost)
    out = yaml.safe_load(lost["dvc.lock"])["stages"]["evaluate"]["outs"][0]["md5"]
    (repo.root / ".dvc/cache/files/md5" / out[:2] / out[2:]).unlink()
    other = PROTOCOL | {"binarization": "c", "eval_samples": 50}
    repo.experiment("other", repo.files(1, h_dim=100, protocol=other, classifier="k"))
    repo.experiment(HOSTILE, repo.files(2, dataset=VALUE))
    torn = repo.files(5, h_dim=50) | {"reports/bound.csv": b"k,widened\n1,\xff"}
    repo.experiment("torn", torn | {"reports/evaluation.json": b"[", "reports/generated.png": b""})
    repo.experiment("empty", {"dvc.lock": b"schema: '2.0'\nstages: {}\n"})
    return repo


def run(repo: FakeExperiments, *names: str, baseline: str | None = None) -> str:
    """Run the command in this process; returns the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repo.root)
        compare.main(argparse.Namespace(names=list(names), baseline=baseline))
    return (repo.root / "reports/compare.html").read_text(encoding="utf-8")


def row(output: str, label: str) -> str:
    """The line of the terminal's table that begins with `label`."""
    return next(line for line in output.splitlines() if line.startswith(f"{label} "))


class Elements(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_table_shows_differences_and_the_notes_what_a_run_lacks(made, capsys):
    run(made)
    output = capsys.readouterr().out
    assert output.isascii() and max(map(len, output.split("\nnote:")[0].splitlines())) <= 160
    assert re.search(r"3 .*-[23]\.\d\d \+/- 0\.\d\d better$", row(output, "h_dim=800"))
    assert row(output, "HEAD").endswith("baseline")
    assert row(output, "h_dim=100").endswith("worse (one seed)")
    assert row(output, "h_dim=200").endswith(" -")
    noted = re.findall(r"^note: ([^:]+): (.*)$", output, re.MULTILINE)
    assert {name for name, _ in noted} == {"lost", "other", "torn", "empty", "MLflow"}
    assert [name for name, _ in noted].count("other") == 3


def test_the_page_needs_no_network_and_shows_no_path_of_this_machine(made):
    text = run(made)
    page = Elements(text)
    assert not page.all("link") and not page.all("iframe") and not page.all("base")
    assert not any("src" in script for script in page.all("script"))
    for _, attributes in page.found:
        for name in {"src", "href", "srcset", "action", "data"} & attributes.keys():
            assert attributes[name].startswith(("data:image/png;base64,", "#"))
    (policy,) = [meta["content"] for meta in page.all("meta") if "http-equiv" in meta]
    assert policy.startswith("default-src 'none'; img-src data:")
    assert str(made.root) not in text and f"{Path.home()}/" not in text


def test_hostile_names_are_shown_and_not_executed(made):
    text = run(made)
    page = Elements(text)
    assert not [one for _, one in page.found if any(name.startswith("on") for name in one)]
    assert len(page.all("script")) == 2 and "&gt;&lt;script&gt;alert(1)" in text
    drawn = "".join(re.findall(r"^  \"[^\n]+\{ data: .*\},$", text, re.MULTILINE))
    assert drawn and "<script" not in drawn and "%{x}\\u0027" not in drawn


def test_named_runs_revisions_and_a_baseline(made, capsys):
    commit = made.git("rev-parse", "refs/exps/" + made.git("for-each-ref", "--format=%(refname)",
                      "refs/exps/**/wide-0").removeprefix("refs/exps/"))  # fmt: skip
    page = run(made, "wide-1", commit[:10], baseline="other")
    output = capsys.readouterr().out
    assert row(output, "other").endswith("baseline") and "lost" not in output
    assert "dvc exp apply wide-1" in page and f"git checkout {commit[:10]}" in page


@pytest.mark.parametrize("name", ["nothing-of-the-kind", "HEAD:dvc.lock", "$(touch x)"])
def test_an_unknown_name_is_an_error(made, name):
    with pytest.raises(UserError) as error:
        run(made, name)
    assert error.value.subject == name


def test_a_baseline_needs_results(made):
    with pytest.raises(UserError) as error:
        run(made, baseline="empty")
    assert error.value.subject == "empty"


def test_two_experiments_of_one_name_are_named_with_their_commits(tmp_path):
    repo = FakeExperiments(tmp_path)
    repo.commit(repo.files())
    commits = [repo.experiment("twice", repo.files(z_dim=2))]
    repo.commit(repo.files(z_dim=5))
    commits.append(repo.experiment("twice", repo.files(z_dim=3)))
    page = run(repo)
    for commit in commits:
        assert f"twice@{commit[:7]}" in page and f"dvc exp apply {commit[:7]}" in page
    with pytest.raises(UserError) as error:
        run(repo, "twice")
    assert error.value.subject == "twice"


def test_the_workspace_is_compared_if_it_has_results_of_its_own(tmp_path, capsys):
    repo = FakeExperiments(tmp_path)
    repo.commit(repo.files())
    with pytest.raises(UserError) as error:
        run(repo)
    assert error.value.subject == "compare"
    repo.write(repo.files(1, z_dim=2))
    state = [("status", "--porcelain", "-uno"), ("stash", "list"), ("for-each-ref",)]
    before = [repo.git(*command) for command in state]
    run(repo)
    assert row(capsys.readouterr().out, "z_dim=2").endswith("worse (one seed)")
    assert [repo.git(*command) for command in state] == before
    lock = yaml.safe_load((tmp_path / "dvc.lock").read_text())
    lock["stages"]["evaluate"]["deps"][0]["md5"] = "0" * 32
    (tmp_path / "dvc.lock").write_text(yaml.safe_dump(lock))
    with pytest.raises(UserError):
        run(repo)  # trained, but not evaluated since


def test_without_results_of_head_the_first_experiment_is_the_baseline(tmp_path, capsys):
    repo = FakeExperiments(tmp_path)
    repo.commit({"dvc.lock": b"torn: ["})
    for z_dim in (2, 3):
        repo.experiment(f"z{z_dim}", repo.files(z_dim=z_dim))
    run(repo)
    assert row(capsys.readouterr().out, "z2").endswith("baseline")


def test_per_image_values_that_are_not_finite_are_ignored(tmp_path, capsys):
    repo = FakeExperiments(tmp_path)
    repo.commit(repo.files())
    values = compare_values = None
    from helpers.fake_experiments import per_image

    values = per_image(1, 0)
    values.loc[3, "nll"] = float("nan")
    repo.experiment("narrow", repo.files(values=values, z_dim=2))
    page = run(repo)
    assert row(capsys.readouterr().out, "z_dim=2").endswith(" -")
    assert page.count("worse (one seed)") == 3  # of -ELBO, in both tables, and of nll_binarized

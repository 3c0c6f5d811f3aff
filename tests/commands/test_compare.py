"""`python -m pipeline compare` over fabricated and real experiments, and its page in a browser."""

import argparse
import base64
import hashlib
import re
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml
from conftest import error_about
from helpers.failing_servers import hanging
from helpers.fake_experiments import MODEL, PARAMS, PER_IMAGE, PROTOCOL, FakeExperiments, picture
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from pipeline.commands import compare
from pipeline.errors import UserError

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HOSTILE = "\"'><script>alert(1)"
VALUE = "</script><script>alert(2)</script>'\"&amp;%{x}"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


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


def test_the_page_needs_no_network_and_executes_no_name(made):
    text = run(made)
    assert not re.search(r"<(link|iframe|base|object)\b|<script[^>]+src", text)
    for address in re.findall(r'(?:src|href|srcset|action|data)="([^"]*)"', text):
        assert address.startswith(("data:image/png;base64,", "#"))
    assert "content=\"default-src 'none'; img-src data:" in text
    assert str(made.root) not in text and f"{Path.home()}/" not in text
    assert text.count("<script") == text.count("</script>") == 2
    assert "&gt;&lt;script&gt;alert(1)" in text and "&lt;/script&gt;&lt;script&gt;alert(2)" in text


def test_named_runs_revisions_and_a_baseline(made, capsys):
    commit = made.git("for-each-ref", "--format=%(objectname)", "refs/exps/**/wide-0")
    page = run(made, "wide-1", commit[:10], baseline="other")
    output = capsys.readouterr().out
    assert row(output, "other").endswith("baseline") and "lost" not in output
    assert re.search(r"\bHEAD\b", output), "HEAD is always compared"
    wide_1 = made.git("for-each-ref", "--format=%(objectname)", "refs/exps/**/wide-1")
    assert f"dvc exp apply {wide_1[:10]}" in page and f"git checkout {commit[:10]}" in page


def test_a_page_that_cannot_be_written_is_named(made):
    page = made.root / "reports/compare.html"
    page.unlink(missing_ok=True)
    page.mkdir()
    with error_about(page):
        run(made)
    page.rmdir()


@pytest.mark.parametrize("name", ["nothing-of-the-kind", "HEAD:dvc.lock", "$(touch x)", "empty"])
def test_an_unknown_name_and_one_without_results_are_errors(made, name):
    with error_about(name):
        run(made, baseline=name)


def test_two_experiments_of_one_name_are_named_with_their_commits(tmp_path):
    repo = FakeExperiments(tmp_path)
    repo.commit(repo.files())
    commits = [repo.experiment("twice", repo.files(z_dim=2))]
    repo.commit(repo.files(z_dim=5))
    commits.append(repo.experiment("twice", repo.files(z_dim=3)))
    page = run(repo)
    for commit in commits:
        assert f"twice@{commit[:7]}" in page and f"dvc exp apply {commit[:10]}" in page
    with error_about("twice"):
        run(repo, "twice")


def test_an_experiment_called_head_or_workspace_takes_the_place_of_neither(tmp_path):
    repo = FakeExperiments(tmp_path)
    repo.commit(repo.files())
    for z_dim, name in enumerate(("HEAD", "workspace"), 2):
        commit = repo.experiment(name, repo.files(z_dim=z_dim))
        page = run(repo, f"{name}@{commit[:7]}")
        assert f"z_dim={z_dim}" in page and f"dvc exp apply {commit[:10]}" in page


def test_per_image_values_that_are_corrupt_cost_their_run_a_note(tmp_path, capsys):
    repo = FakeExperiments(tmp_path)
    repo.commit(repo.files())
    for z_dim in (2, 3):
        repo.experiment(f"z{z_dim}", files := repo.files(z_dim, z_dim=z_dim))
    out = yaml.safe_load(files["dvc.lock"])["stages"]["evaluate"]["outs"][0]["md5"]
    cached = repo.root / ".dvc/cache/files/md5" / out[:2] / out[2:]
    content = bytearray(cached.read_bytes())
    content[len(content) // 3] ^= 1
    cached.write_bytes(content)
    run(repo)
    output = capsys.readouterr().out
    assert "note: z3: incomplete: " in output and row(output, "z_dim=3").endswith(" -")
    assert row(output, "z_dim=2").endswith("(one seed)")


def test_a_failure_of_dvc_is_one_line(tmp_path):
    repo = FakeExperiments(tmp_path)
    repo.commit(repo.files())
    (tmp_path / ".dvc/config.local").write_text("[cache]\nno such key = 1\n")
    with error_about("dvc"):
        run(repo)


def test_the_workspace_is_compared_if_it_has_results_of_its_own(tmp_path, capsys):
    repo = FakeExperiments(tmp_path)
    repo.commit(repo.files())
    with error_about("compare"):
        run(repo)
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


def test_a_likelihood_without_a_measure_is_compared_with_itself_only(tmp_path, capsys):
    repo = FakeExperiments(tmp_path / "repo")
    repo.commit(repo.files())
    protocol = PROTOCOL | {"likelihood": "laplace"}
    repo.experiment("laplace", repo.files(-3, likelihood="laplace", protocol=protocol))
    run(repo)
    assert "note: laplace: a density of laplace, HEAD of bernoulli" in capsys.readouterr().out


def test_the_files_of_real_stages_are_read(finished, tmp_path_factory, capsys):
    repo = FakeExperiments(tmp_path_factory.mktemp("real"))
    outs = {name: (finished / name).read_bytes() for name in (MODEL, PER_IMAGE)}
    params = yaml.safe_load((finished / "params.yaml").read_text())
    paths = (finished / "reports").rglob("*.*")
    files = {path.relative_to(finished).as_posix(): path.read_bytes() for path in paths}
    del files[PER_IMAGE]
    for commit, h_layers in ((repo.commit, 1), (partial(repo.experiment, "deep"), 2)):
        lock = repo.lock(params | {"h_layers": h_layers}, outs, "x")
        commit(files | {"dvc.lock": yaml.safe_dump(lock).encode()})
    page = run(repo)
    output = capsys.readouterr().out
    assert "+0.0000 +/- 0.0000 not significant" in row(output, "h_layers=2")
    assert output.count("note: ") == 1  # of MLflow
    assert set(re.findall(r'id="chart-(\w+)"', page)) >= {"plane", "history", "bound"}
    titles = set(re.findall(r'alt="(\w+):', page))
    assert titles >= {"Generated", "Reconstructed", "Traversals", "Interpolations"}


def test_runs_are_linked_to_their_finished_mlflow_run_by_parameters_and_model(
    made, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    from pipeline.tracking.client import open_store

    store, runs = open_store(made.root), []
    for seed, is_ours, status in ((1, True, "FAILED"), (1, True, "FINISHED"), (1, True, "FAILED"),
                                  (2, False, "FINISHED")):  # fmt: skip
        params = PARAMS | {"seed": seed}
        runs.append(store.client.create_run(store.experiment_id))
        sha256 = hashlib.sha256(f"{params}x".encode()).hexdigest()  # see FakeExperiments.files
        store.tag(runs[-1], {"model.sha256": sha256 if is_ours else "0" * 64}, params)
        store.close(runs[-1].info.run_id, status)
    links = re.findall(r'<a href="(http[^"]*)"', run(made))
    assert links == [store.url(runs[1])] and "workflowType=machine_learning" in links[0]


def test_a_parameter_that_a_lock_lacks_has_its_default(tmp_path, capsys):
    """It is of a version without that parameter."""
    repo = FakeExperiments(tmp_path)
    repo.commit(repo.files())
    repo.experiment("later", repo.files(seed=1, beta=1.0))
    repo.experiment("wide", repo.files(-3, h_dim=800))
    run(repo)
    assert re.search(r" 2 +HEAD, later ", row(capsys.readouterr().out, "HEAD"))


def test_another_dataset_is_another_configuration(tmp_path, capsys):
    """`dataset` is a parameter of the stage `download`."""
    repo = FakeExperiments(tmp_path)
    repo.commit(repo.files())
    files = repo.files(seed=1)
    lock = yaml.safe_load(files["dvc.lock"])
    del lock["stages"]["train"]["params"]["params.yaml"]["dataset"]
    download = {"deps": [], "params": {"params.yaml": {"dataset": "kmnist"}}, "outs": []}
    lock["stages"]["download"] = download
    repo.experiment("other", files | {"dvc.lock": yaml.safe_dump(lock).encode()})
    run(repo)
    assert row(capsys.readouterr().out, "dataset=kmnist")


def test_every_shown_configuration_has_its_own_pictures_the_baseline_included(tmp_path):
    repo = FakeExperiments(tmp_path)
    repo.commit(repo.files())
    contents = {"HEAD": repo.files()["reports/generated.png"]}
    for number in range(1, 8):
        files = repo.files(-number, z_dim=number) | {"reports/generated.png": picture(number)}
        repo.experiment(f"e{number}", files)
        contents[f"z_dim={number}"] = picture(number)
    found = re.findall(r'src="data:image/png;base64,([^"]*)" alt="Generated: ([^"]*)"', run(repo))
    shown = [*(f"z_dim={z_dim}" for z_dim in (7, 6, 5, 4, 3)), "HEAD"]
    assert [label for _, label in found] == shown
    assert all(base64.b64decode(data) == contents[label] for data, label in found)


def test_an_unusable_mlflow_store_costs_a_note_and_seconds(made, monkeypatch, capsys):
    with hanging() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address.replace("//", "//user:secret@"))
        start = time.monotonic()
        page = run(made, "wide-0")
    assert time.monotonic() - start < 20
    output = capsys.readouterr().out
    assert "note: MLflow: no links to runs" in output
    assert "secret" not in page + output


@pytest.fixture(scope="module")
def browser(made) -> Iterator[webdriver.Chrome]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("no browser (Debian: apt-get install chromium chromium-driver)")
    run(made)
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as chrome:
        chrome.get((made.root / "reports/compare.html").as_uri())
        wait_for_charts(chrome)
        yield chrome


def wait_for_charts(browser: webdriver.Chrome) -> None:
    undrawn = "return [...document.querySelectorAll('.plot')].filter(plot => !plot.data).length"
    WebDriverWait(browser, 20).until(lambda browser: browser.execute_script(undrawn) == 0)


@pytest.mark.slow
def test_every_chart_is_drawn_without_an_error(browser):
    charts = browser.find_elements(By.CSS_SELECTOR, ".plot")
    assert len(charts) > 6
    assert all(chart.find_elements(By.CSS_SELECTOR, ".main-svg") for chart in charts)
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_a_column_is_sorted_by_mouse_and_keyboard(browser):
    table = browser.find_element(By.TAG_NAME, "table")
    head = table.find_elements(By.CSS_SELECTOR, "thead th")[2]

    def column() -> list[str]:
        return [cell.text for cell in table.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(3)")]

    assert head.text.startswith("−log p(x)")
    head.find_element(By.TAG_NAME, "button").click()
    assert column() == sorted(column(), key=number)
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert column() == sorted(column(), key=number, reverse=True)
    table.find_elements(By.CSS_SELECTOR, "thead button")[1].click()
    differences = table.find_elements(By.CSS_SELECTOR, "tbody td:nth-child(2)")
    assert differences[-1].text == "—" and "better" in differences[0].text


def number(cell: str) -> float:
    return float(cell.split()[0])


@pytest.mark.slow
def test_the_legend_hides_a_configuration_in_every_chart(browser):
    button = browser.find_element(By.CSS_SELECTOR, "[data-group=g0]")
    script = """
        const lines = [...document.querySelectorAll(".plot")].flatMap(plot => plot.data);
        return lines.filter(line => line.legendgroup === "g0").map(line => line.visible ?? true);
    """
    before = browser.execute_script(script)
    assert len(before) > 5 and all(before)
    browser.execute_script("arguments[0].click()", button)
    assert not any(browser.execute_script(script))
    browser.execute_script("arguments[0].click()", button)
    assert browser.execute_script(script) == before


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_only_tables_are_wider_than_the_screen(browser, width):
    screen = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 800}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.refresh()
    wait_for_charts(browser)
    wide = """
        const right = element => element.getBoundingClientRect().right;
        const free = one => !one.closest(".scroll, .plot");
        const wide = one => free(one) && right(one) > innerWidth + 1;
        return [...document.querySelectorAll("main *")].filter(wide).map(one => one.outerHTML);
    """
    assert browser.execute_script(wide) == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")

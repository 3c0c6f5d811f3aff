"""`python -m pipeline.commands.compare`: what it says and shows of trained experiments, and of some that are made up."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.fake_experiments import PARAMS, PROTOCOL, Fabricated, parquet, per_image
from helpers.repo import Repo, plant
from ruamel.yaml import YAML
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline import compare as verb
from pipeline.commands.comparison.tracked import seen_at
from pipeline.errors import InputError

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
HOSTILE = "\"'><script>alert(1)"
VALUE = "</script><script>alert(2)</script>'\"&amp;%{x}"


@pytest.fixture(autouse=True)
def nobody_elses_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Fabricated:
    """Seeds, an older version, a lost file, other protocols, and what somebody has named to do harm."""
    repo = Fabricated(tmp_path_factory.mktemp("made"))
    repo.commit(repo.files(PARAMS))
    for seed in (1, 2):
        repo.experiment(f"seed-{seed}", repo.files(PARAMS | {"seed": seed}))
    for seed in (0, 1, 2):
        repo.experiment(f"wide-{seed}", repo.files(PARAMS | {"h_dim": 800, "seed": seed}, -3))
    old = {key: value for key, value in PARAMS.items() if not key.startswith("eval_")}
    repo.experiment("old", repo.files(old | {"z_dim": 2}, 40, old=True, code="old"))
    repo.lose("reports/per_image.parquet", repo.experiment("lost", repo.files(PARAMS | {"h_dim": 200}, 0.5)))
    other = PROTOCOL | {"binarization": "c", "eval_samples": 50}
    repo.experiment("other", repo.files(PARAMS | {"h_dim": 100, "val_size": 0}, 1, protocol=other, judge="k"))
    repo.experiment(HOSTILE, repo.files(PARAMS | {"dataset": VALUE}, 2))
    torn = repo.files(PARAMS | {"h_dim": 50}, 5)
    torn |= {"reports/bound.csv": b"k,widened\n1,\xff", "reports/judge.json": b"[]", "reports/generated.png": b"<svg/>"}
    repo.experiment("torn", torn)
    repo.experiment(
        "empty", {"params.yaml": b"seed: 0\n"} | dict.fromkeys(["dvc.lock"], b"schema: '2.0'\nstages: {}\n")
    )
    return repo


def run(repo: Fabricated, *arguments: str) -> str:
    """What the verb prints, in this process; an InputError as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repo.root)
        patch.setattr(sys, "argv", ["compare", *arguments])
        said: list[str] = []
        patch.setattr("builtins.print", lambda *words, **_: said.append(" ".join(map(str, words))))
        verb.main()
    return "\n".join(said)


@pytest.fixture(scope="module")
def told(made) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
            patch.delenv(name)
        return run(made)


@pytest.fixture(scope="module")
def text(made, told) -> str:
    return (made.root / "reports" / "compare.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every element with its attributes, and what stands in a script, a style or anywhere else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag = self.found[-1][0] if self.found and self.found[-1][0] in ("script", "style") else "text"
        self.texts.setdefault(tag, []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_table_says_what_differs_and_how_sure_it_is(told):
    lines = told.splitlines()
    assert lines[0].split("  ")[0] == "runs" and "h_dim" in lines[0] and "against HEAD" in lines[0]
    assert re.match(r"wide-0, wide-1 \+1 .* 800 .* 3 .*−[23]\.\d\d ± 0\.\d\d nats: better$", lines[1]), told
    assert re.search(r"^HEAD, seed-1 \+1 .*baseline$", told, re.MULTILINE)
    assert re.search(r"^other .*worse \(one seed\)$", told, re.MULTILINE)
    assert re.search(
        r"^compare: Best by −log p\(x\): h_dim=800 \(wide-0, wide-1, wide-2\), .* better than HEAD\.$",
        told,
        re.MULTILINE,
    )
    assert lines[-1].startswith("compare: wrote reports/compare.html (open it in a browser)")
    assert max(map(len, lines[:9])) <= 118


def test_what_a_run_lacks_is_a_note_and_nothing_worse(told):
    for note in (
        "old: was evaluated by an older version of the project",
        "z_dim=2: ran other code than HEAD: pipeline/stages/train.py",
        "lost: reports/per_image.parquet is neither in DVC's cache nor in a remote",
        "has no per-image values: no paired differences",
        "was measured with another binarization than HEAD",
        "−log p(x) is from 50 draws of z an image, of HEAD from 500",
        "of another judge than HEAD's",
        "torn: bound.csv is not what the stages write",
        "torn: judge.json is not what the stages write",
        "empty: has no results yet",
        "MLflow has no runs",
    ):
        assert note in told, note
    assert re.search(r"^old .* 2 .* —$", told, re.MULTILINE), "it appears with what it has"


def test_the_page_needs_no_network_and_names_nothing_of_this_machine(text, made):
    page = Elements(text)
    assert not page.all("link") and not page.all("iframe") and not page.all("base")
    assert all("src" not in script for script in page.all("script"))
    for _, attributes in page.found:
        for name in {"src", "href", "srcset", "action", "poster", "data"} & attributes.keys():
            assert attributes[name].startswith(("data:image/png;base64,", "#"))
    assert "url(" not in "".join(page.texts["style"]) and "@import" not in text.split("<script>")[0]
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:")
    assert str(made.root) not in text and str(Path.home()) + "/" not in text


def test_the_page_can_be_read_without_seeing_it(text):
    page = Elements(text)
    assert page.all("html")[0]["lang"] == "en" and any(meta.get("name") == "viewport" for meta in page.all("meta"))
    images = page.all("img")
    assert len(images) > 15 and all(len(image["alt"]) > 40 and image["width"] for image in images)
    assert len({image["alt"] for image in images}) == len(images), "each says whose it is"
    charts = [attributes for _, attributes in page.found if attributes.get("role") == "img"]
    assert len(charts) > 8 and all(len(chart["aria-label"]) > 40 for chart in charts)
    assert len(page.all("table")) == len(page.all("caption")) > 4
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))


def test_what_is_named_to_do_harm_is_shown_and_does_none(text):
    page = Elements(text)
    assert not [attributes for _, attributes in page.found if any(name.startswith("on") for name in attributes)]
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert len(page.all("script")) == 2 and "&gt;&lt;script&gt;alert(1)" in text and "&lt;/script&gt;" in text
    drawn = json.loads(re.search(r"^const figures = (.*);$", text, re.MULTILINE)[1])
    assert "<" not in re.sub(r"<extra></extra>", "", json.dumps(drawn)), "plotly reads some HTML as well"


def test_names_revisions_and_a_baseline(made):
    said = run(
        made,
        "wide-1",
        made.git("rev-parse", "refs/heads/" + made.git("branch", "--show-current"))[:10],
        "--baseline",
        "other",
    )
    assert "against other" in said.splitlines()[0] and re.search(r"^wide-1 .*better \(one seed\)$", said, re.MULTILINE)
    assert "old" not in said
    commit = made.git("for-each-ref", "--format=%(objectname)", "refs/exps/**/wide-0")
    assert "dvc exp apply wide-0" in commands(made, "--baseline=HEAD", commit), "a commit that is an experiment's"


def commands(repo: Fabricated, *arguments: str) -> str:
    run(repo, *arguments)
    return (repo.root / "reports" / "compare.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["nothing-of-the-kind", "HEAD:params.yaml", "$(touch x)"])
def test_an_unknown_name_is_told_with_what_there_is(made, name):
    with pytest.raises(InputError, match="is no experiment and no git revision") as error:
        run(made, name)
    assert name in str(error.value) and "wide-0" in str(error.value) and "\n" not in str(error.value)


def test_a_baseline_without_results_is_refused(made):
    with pytest.raises(InputError, match="empty: has no results"):
        run(made, "--baseline", "empty")


def test_a_name_of_two_experiments_is_asked_for(tmp_path):
    repo = Fabricated(tmp_path)
    repo.commit(repo.files(PARAMS))
    repo.experiment("twice", repo.files(PARAMS | {"z_dim": 2}))
    repo.commit(repo.files(PARAMS | {"z_dim": 5}))
    repo.experiment("twice", repo.files(PARAMS | {"z_dim": 3}))
    with pytest.raises(InputError, match=r"is the name of 2 experiments: say which \(twice@\w{7}, twice@\w{7}\)"):
        run(repo, "twice")
    said = commands(repo)
    both = repo.git("for-each-ref", "--format=%(objectname)", "refs/exps/").splitlines()
    assert all(f"twice@{commit[:7]}" in said and f"dvc exp apply {commit[:7]}" in said for commit in both)
    assert len(both) == 2 and "dvc exp apply twice" not in said, "DVC would take the one that is on HEAD"


def in_workspace(repo: Fabricated, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (repo.root / path).write_bytes(content)


def test_the_workspace_is_compared_where_it_has_other_results(tmp_path):
    repo = Fabricated(tmp_path)
    repo.commit(repo.files(PARAMS))
    in_workspace(repo, {"params.yaml": b"z_dim: 3\n"})
    with pytest.raises(InputError, match="one run has results"):
        run(repo)
    in_workspace(repo, repo.files(PARAMS | {"z_dim": 2}, 1))
    before = repo.git("status", "--porcelain", "-uno"), repo.git("stash", "list"), repo.git("for-each-ref")
    said = run(repo)
    assert re.search(r"^workspace .* 2 .*worse \(one seed\)$", said, re.MULTILINE), said
    assert before == (repo.git("status", "--porcelain", "-uno"), repo.git("stash", "list"), repo.git("for-each-ref"))
    assert "what is there now: commit it to keep it" in commands(repo, "workspace")
    repo.git("reset", "-q", "--hard")
    for name, params in {"wide": {"h_dim": 800}, "narrow": {"z_dim": 2}}.items():
        repo.experiment(name, repo.files(PARAMS | params, 1))
    in_workspace(repo, repo.files(PARAMS | {"z_dim": 2}, 1))
    assert "workspace" not in run(repo), "it has what `dvc exp run` has left there"
    in_workspace(repo, repo.files(PARAMS | {"z_dim": 3}, 1))
    assert "workspace" in run(repo) and "workspace" not in run(repo, "wide"), "only what is named"
    assert "against workspace" in run(repo, "wide", "--baseline", "workspace").splitlines()[0]


def test_where_head_has_no_per_image_values_what_was_computed_here_counts(tmp_path):
    """A clone of what somebody has trained on another CPU: its bytes are not in the cache, and are others here."""
    repo = Fabricated(tmp_path)
    repo.commit(repo.files(PARAMS))
    repo.experiment("narrow", repo.files(PARAMS | {"z_dim": 2}, 1))
    repo.lose("reports/per_image.parquet", repo.git("rev-parse", "HEAD"))
    assert re.search(r"^narrow .* —$", said := run(repo), re.MULTILINE), said
    in_workspace(repo, repo.files(PARAMS, 0.001))
    said = run(repo)
    assert re.search(r"^narrow .*worse \(one seed\)$", said, re.MULTILINE), said
    assert "HEAD has the parameters, seed and code of workspace, and other results" in said
    assert "workspace counts" in said and "against HEAD" in said.splitlines()[0]


def test_what_was_trained_again_and_not_evaluated_has_no_results(tmp_path):
    repo = Fabricated(tmp_path)
    repo.commit(repo.files(PARAMS))
    repo.experiment("narrow", repo.files(PARAMS | {"z_dim": 2}, 1))
    files = repo.files(PARAMS | {"z_dim": 5})
    lock = json.loads(json.dumps(YAML(typ="safe", pure=True).load(files["dvc.lock"])))
    model = lock["stages"]["train"]["outs"][0]
    lock["stages"]["evaluate"]["deps"] = [*lock["stages"]["evaluate"]["deps"], model | {"md5": "0" * 32}]
    in_workspace(repo, files | {"dvc.lock": json.dumps(lock).encode()})
    said = run(repo)
    assert "note: workspace: has been trained again and not evaluated since; `dvc repro` does it" in said
    assert not re.search(r"^workspace", said, re.MULTILINE)


def test_where_there_is_nothing_to_compare_it_says_what_to_do(tmp_path):
    repo = Fabricated(tmp_path)
    repo.commit({"params.yaml": b"z_dim: 2\n"})
    with pytest.raises(InputError, match="no run has results; `dvc repro` makes those of HEAD"):
        run(repo)
    repo.commit(repo.files(PARAMS))
    with pytest.raises(InputError, match=r"one run has results.* `dvc exp run -S z_dim=2`"):
        run(repo)
    repo.commit({"params.yaml": b"z_dim: 2\n", "dvc.lock": b"torn: ["})
    for z_dim in (2, 3):
        repo.experiment(f"z{z_dim}", repo.files(PARAMS | {"z_dim": z_dim}))
    said = run(repo)
    assert "against z2" in said.splitlines()[0], "the first is the baseline where HEAD has no results"


def test_parameters_that_were_changed_after_the_results_are_told(tmp_path):
    repo = Fabricated(tmp_path)
    files = repo.files(PARAMS)
    repo.commit(files | {"params.yaml": files["params.yaml"].replace(b"z_dim: 20", b"z_dim: 7")})
    repo.experiment("narrow", repo.files(PARAMS | {"z_dim": 2}, 1))
    assert "note: HEAD: its params.yaml was changed afterwards; what was executed has z_dim: 20" in run(repo)


def test_per_image_values_that_are_none_are_left_out(tmp_path):
    repo = Fabricated(tmp_path)
    repo.commit(repo.files(PARAMS))
    lost = repo.files(PARAMS | {"z_dim": 2}, 1)
    values = per_image(1, 0)
    values["nll"][3] = float("nan")
    lock = repo.lock(
        PARAMS | {"z_dim": 2},
        {"data/model/vae.safetensors": b"model", "reports/per_image.parquet": parquet(values, PROTOCOL)},
        "x",
    )
    repo.experiment("narrow", lost | {"dvc.lock": json.dumps(lock).encode()})
    said = run(repo)
    assert re.search(r"^narrow .*worse \(−ELBO, one seed\)$", said, re.MULTILINE)
    assert "narrow: per_image.parquet: nll is left out, not all of it is finite" in said


def test_a_server_is_linked_to_without_its_password():
    assert seen_at("https://user:secret@mlflow.example:8443/path/?x=1") == "https://mlflow.example:8443/path"
    assert seen_at("sqlite:///some/where/mlflow.db") == seen_at("postgresql://u:p@host/db") == "http://127.0.0.1:5000"


def test_a_store_that_is_away_costs_a_note(made, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    said = run(made, "wide-0")
    assert "cannot be reached): runs are not linked to" in said and "secret" not in said
    assert "secret" not in (made.root / "reports" / "compare.html").read_text(encoding="utf-8")


# In a browser.


@pytest.fixture(scope="module")
def browser(made, text) -> Iterator[webdriver.Chrome]:
    if not (CHROMIUM and DRIVER):
        pytest.skip("no browser to look with (Debian: apt-get install chromium chromium-driver)")
    (made.root / "page.html").write_text(text, encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as chrome:
        chrome.get((made.root / "page.html").as_uri())
        yield chrome


def test_no_script_fails_and_every_chart_is_drawn(browser):
    charts = browser.find_elements(By.CSS_SELECTOR, ".plot")
    assert len(charts) > 8 and all(chart.find_elements(By.CSS_SELECTOR, ".main-svg") for chart in charts)
    assert all(browser.execute_script("return [...document.images].map(image => image.naturalWidth > 0)"))
    assert browser.get_log("browser") == []


def test_a_column_sorts_by_mouse_and_keyboard(browser):
    table = browser.find_element(By.TAG_NAME, "table")
    head = table.find_elements(By.CSS_SELECTOR, "thead th")[2]

    def column() -> list[str]:
        rows = table.find_elements(By.CSS_SELECTOR, "tbody tr")
        return [row.find_elements(By.CSS_SELECTOR, "th, td")[2].text for row in rows]

    def numbers() -> list[float]:
        return [float(cell.split()[0]) for cell in column() if cell != "—"]

    assert head.text.startswith("−log p(x)") and head.get_attribute("aria-sort") == "none"
    head.find_element(By.TAG_NAME, "button").click()
    assert head.get_attribute("aria-sort") == "ascending" and numbers() == sorted(numbers())
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending" and numbers() == sorted(numbers(), reverse=True)
    assert column()[-1] == "—", "what is missing stays at the end"
    other = table.find_elements(By.CSS_SELECTOR, "thead th")[0]
    other.find_element(By.TAG_NAME, "button").click()
    assert head.get_attribute("aria-sort") == "none"
    names = [row.get_attribute("data-key") for row in table.find_elements(By.CSS_SELECTOR, "tbody th")]
    assert names.index("h_dim=50") < names.index("h_dim=200") < names.index("h_dim=800"), "numbers in names count"


def test_the_legend_hides_a_configuration_everywhere(browser):
    button = browser.find_element(By.CSS_SELECTOR, "[data-group=g0]")
    visible = (
        "return document.getElementById('chart-training').data.filter(l => l.legendgroup === 'g0').map(l => l.visible)"
    )
    browser.execute_script("arguments[0].click()", button)
    assert button.get_attribute("aria-pressed") == "false" and browser.execute_script(visible) == [False] * 3
    browser.execute_script("arguments[0].click()", button)
    assert button.get_attribute("aria-pressed") == "true" and browser.execute_script(visible) == [True] * 3


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_but_tables_is_wider_than_the_screen(browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 800},
    )
    browser.refresh()
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    wide = """
        const right = element => element.getBoundingClientRect().right;
        const isWide = element => !element.closest(".scroll, .plot") && right(element) > innerWidth + 1;
        return [...document.querySelectorAll("main *")].filter(isWide).map(element => element.outerHTML.slice(0, 99));
    """
    assert browser.execute_script(wide) == []


def test_on_paper_nothing_is_folded_away(browser):
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert not browser.find_elements(By.CSS_SELECTOR, "details:not([open])")
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.find_elements(By.CSS_SELECTOR, "details:not([open])")
    assert browser.get_log("browser") == []


# As a person does it.


@pytest.fixture(scope="module")
def real(tmp_path_factory, small_mnist) -> Repo:
    """HEAD with results, and an experiment that only measures them otherwise: no training again."""
    repo = plant(tmp_path_factory.mktemp("compare"), small_mnist, num_epochs=1)
    repo.run("dvc", "repro")
    repo.commit()
    repo.run("dvc", "exp", "run", "-n", "few", "-S", "eval_samples=5")
    return repo


def test_real_experiments_are_compared_and_linked_to_their_runs(real):
    before = real.run("git", "status", "--porcelain")
    said = real.run("python", "-m", "pipeline.commands.compare")
    assert re.search(r"^few +5 .* nats: (better|worse|not told apart) \(one seed\)$", said, re.MULTILINE), said
    assert said.count("note: ") == 1 and "−log p(x) is from 5 draws of z an image, of HEAD from " in said
    assert "links to MLflow work while `make ui` runs" in said
    assert real.run("git", "status", "--porcelain") == before, "the page is generated, and not in git"
    page = Elements((real.root / "reports" / "compare.html").read_text(encoding="utf-8"))
    runs = real.runs().values()
    links = {f"http://127.0.0.1:5000/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}" for run in runs}
    assert {link["href"] for link in page.all("a") if link["href"].startswith("http")} == links and len(links) == 2
    assert "dvc exp apply few" in page.texts["text"]
    pictures = {image["alt"].split(" of ")[0] for image in page.all("img")}
    assert pictures >= {"Samples from the prior", "Reconstructions", "Traversals", "Interpolations"}


def test_a_model_that_the_cache_has_lost_is_a_note(real):
    shutil.rmtree(real.root / ".dvc" / "cache")
    said = real.run("python", "-m", "pipeline.commands.compare")
    assert (
        "all: data/model/vae.safetensors is neither in DVC's cache nor in a remote" in said
        or said.count("is neither in DVC's cache") == 2
    )
    assert "has no per-image values: no paired differences" in said


def test_a_typing_mistake_is_one_line(real):
    assert real.run("python", "-m", "pipeline.commands.compare", "narow", ok=False).startswith(
        "compare: narow: is no experiment and no git revision (there is HEAD, few)"
    )

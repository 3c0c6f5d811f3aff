"""`make ui` in a real browser: what a person sees of three runs, and the clicks that it takes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import pytest
from conftest import ROOT, furnish, set_params
from mlflow import MlflowClient
from mlflow.entities import Run
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait
from helpers.servers import free_port, kill_group, wait_for

from pipeline import evaluate, judge, log, train

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser to look with (Debian: apt-get install chromium chromium-driver)"
)
PATIENCE = 90  # seconds that a page may take
CARD = "[data-testid='experiment-view-compare-runs-card']"
# What the plot in a card was drawn from: [name, x, y] of each line, once (the band around a line has its name).
LINES = """
    const plot = arguments[0].querySelector(".js-plotly-plot");
    const lines = (plot?.data ?? []).map(line => [line.name, Array.from(line.x ?? []), Array.from(line.y ?? [])]);
    return [...new Map(lines.map(line => [line[0], line])).values()];
"""


T = TypeVar("T")


class Store(NamedTuple):
    uri: str
    client: MlflowClient
    runs: dict[str, Run]


class Page:
    """MLflow's UI in a browser. What is looked for may take its time to come."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        self.address = address

    def open(self, path: str) -> None:
        self.browser.get("about:blank")  # another fragment alone is no new page
        self.browser.get(f"{self.address}/#{path}")

    def until(self, found: Callable[[], T], what: str) -> T:
        """Wait until something is found, and return it."""
        wait = WebDriverWait(self.browser, PATIENCE, ignored_exceptions=[StaleElementReferenceException])
        try:
            return wait.until(lambda _: found())
        except TimeoutException:
            raise AssertionError(f"{what}: is not there within {PATIENCE} s in:\n{self.text()}") from None

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def first(self, selector: str) -> WebElement:
        return self.until(lambda: self.all(selector), selector)[0]

    def click(self, selector: str) -> None:
        """Click it as soon as it is there; once more where it was replaced meanwhile."""

        def clicked() -> bool:
            found = self.all(selector)
            if found:
                found[0].click()
            return bool(found)

        self.until(clicked, selector)

    def text(self) -> str:
        return self.browser.find_element(By.TAG_NAME, "body").text

    def shows(self, *texts: str) -> None:
        for text in texts:
            self.until(lambda text=text: text in self.text(), text)

    def cells(self, column: str) -> dict[str, str]:
        """A column of the table of runs: each run's id and what stands there."""
        rows = self.all(f".ag-row:has([col-id='{column}'])")
        return {
            row.get_attribute("row-id"): row.find_element(By.CSS_SELECTOR, f"[col-id='{column}']").text for row in rows
        }

    def card(self, title: str) -> WebElement:
        """A chart or a picture, by its title."""
        return self.first(f"{CARD}:has([title='{title}'])")

    def picture(self, name: str) -> None:
        """One whose address has `name` in it has been loaded."""
        selector = f"{CARD} img[src*='{name}']"
        self.until(lambda: self.first(selector).get_property("naturalWidth") > 0, name)

    def lines(self, title: str) -> dict[str, list[tuple[int, float]]]:
        """The points of each line in a chart."""
        drawn = self.until(lambda: self.browser.execute_script(LINES, self.card(title)), f"a line in {title}")
        return {name: list(zip(x, y, strict=True)) for name, x, y in drawn}


@pytest.fixture(scope="module")
def store(tmp_path_factory, small_mnist) -> Store:
    """Three runs, of z_dim 2, 4 and 8."""
    root = tmp_path_factory.mktemp("store")
    furnish(root, small_mnist)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_"))]:
            patch.delenv(name)
        patch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
        for z_dim in (2, 4, 8):
            set_params(root, {"z_dim": z_dim})
            patch.setenv("DVC_EXP_NAME", f"code-of-{z_dim}")
            train.main()
            judge.main()
            evaluate.main()
            log.stage()
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("mnist-vae").experiment_id])
    return Store(uri, client, {run.info.run_name: run for run in found})


@pytest.fixture(scope="module")
def page(store, tmp_path_factory) -> Iterator[Page]:
    """`make ui`, and a browser."""
    folder, port = tmp_path_factory.mktemp("ui"), free_port()
    with (folder / "server.log").open("w") as output:
        process = subprocess.Popen(
            ["make", "-C", ROOT, "ui", "-o", "setup", f"VENV={sys.prefix}", f"PORT={port}"],  # it is set up
            env={**os.environ, "MLFLOW_TRACKING_URI": store.uri, "MLFLOW_WORKERS": "1"},
            stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # Wide and high: neither the table nor the charts draw what is out of sight.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=2400,6000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as browser:
            yield Page(browser, f"http://127.0.0.1:{port}")
    finally:
        kill_group(process)


@pytest.fixture(autouse=True)
def no_complaint(page) -> Iterator[None]:
    """Nothing that the UI asked the server for was refused, and no script failed."""
    yield
    said = [entry["message"] for entry in page.browser.get_log("browser") if entry["level"] == "SEVERE"]
    # a server without accounts has no current user; a layout may take two frames
    known = ("mlflow/users/current", "ResizeObserver loop")
    assert [message for message in said if not any(name in message for name in known)] == []


def runs_of(store: Store) -> str:
    return f"/experiments/{next(iter(store.runs.values())).info.experiment_id}/runs"


def test_the_runs_table_shows_parameters_and_test_metrics(page, store):
    """In the view that is saved with the experiment."""
    page.open(f"{runs_of(store)}?viewStateShareKey=results")
    page.shows(*store.runs)
    wanted = {run.info.run_id: run.data.params["z_dim"] for run in store.runs.values()}
    page.until(lambda: page.cells("params.`z_dim`") == wanted, "z_dim")
    assert set(wanted.values()) == {"2", "4", "8"}
    measured = {run.info.run_id: str(run.data.metrics["test/neg_elbo"]) for run in store.runs.values()}
    page.until(lambda: page.cells("metrics.`test/neg_elbo`") == measured, "test/neg_elbo")


def test_three_runs_are_compared_by_parallel_coordinates(page, store):
    page.open(runs_of(store))
    page.click("[aria-label='Select all runs']")
    page.click("[data-testid='runs-compare-button']")
    page.shows("Comparing 3 Runs from 1 Experiment", "Parallel Coordinates Plot", *store.runs)
    page.until(lambda: "z_dim" in [axis.text for axis in page.all(".parcoords .axis-title")], "what differs as an axis")
    (param, widths), (metric, values) = page.browser.execute_script(
        "return document.querySelector('.js-plotly-plot').data[0].dimensions.map(axis => [axis.label, axis.values])"
    )
    runs = [run.data for run in store.runs.values()]
    assert {*zip(widths, values, strict=True)} == {(int(run.params[param]), run.metrics[metric]) for run in runs}
    page.shows(*(f"{run.metrics['test/neg_elbo']:.4g}" for run in runs))  # in the table below


def test_three_runs_are_compared_by_their_curves(page, store):
    page.open(f"{runs_of(store)}?compareRunsMode=CHART")
    for key in ("train/neg_elbo", "val/neg_elbo", "train/kl"):
        wanted = {
            name: [(point.step, point.value) for point in store.client.get_metric_history(run.info.run_id, key)]
            for name, run in store.runs.items()
        }
        page.until(lambda key=key, wanted=wanted: page.lines(key) == wanted, f"{key} of three runs")
        assert all(len(points) == 3 for points in wanted.values())
    for run in store.runs.values():
        bar = f"{run.data.metrics['test/neg_elbo']:.2f}"
        page.until(lambda bar=bar: bar in page.card("test/neg_elbo").text, bar)


def test_a_run_shows_its_samples_by_step(page, store):
    page.open(f"{runs_of(store)}/{store.runs['code-of-8'].info.run_id}/model-metrics")
    for key in ("samples/generated", "samples/reconstructed"):
        slider = f"{CARD}:has([title='{key}']) [role=slider]"
        for step in (0, 2, 3):  # untrained, sample_every, the last
            if step:
                page.first(slider).send_keys(Keys.ARROW_RIGHT)
            page.first(f"{slider}[aria-valuenow='{step}']")
            page.picture(f"{key.replace('/', '~')}%2Bstep%2B{step}%2B")
    for key in ("test~generated", "test~reconstructed"):
        page.picture(f"{key}%2Bstep%2B0%2B")


def test_a_run_says_what_it_is_and_how_to_get_it_back(page, store):
    run = store.runs["code-of-4"]
    page.open(f"{runs_of(store)}/{run.info.run_id}")
    description = page.first("[data-testid='note-editor-preview-content']")
    cells = [cell.text for cell in description.find_elements(By.CSS_SELECTOR, "td")]
    assert f"{run.data.metrics['test/neg_elbo']:.2f}" in cells, "Markdown, as a table"
    assert description.find_element(By.TAG_NAME, "code").text == "dvc exp apply code-of-4"
    (model,) = store.client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    assert page.first(f"a[href*='{model.model_id}']").text == "vae"
    page.shows("Logged models (1)", "Ready", "Datasets", "Training")
    page.browser.find_element(By.XPATH, "//button[contains(., '+2')]").click()
    page.shows("Validation", "Test")

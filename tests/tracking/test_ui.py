"""`make ui` in a real browser with an empty profile: what a person sees of three runs."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from conftest import ROOT, set_params, use_folder
from helpers.mlflow_contents import client_of, runs_of
from helpers.servers import free_port, started, wait_for
from mlflow.entities import Run
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from pipeline.stages import evaluate, log, train
from pipeline.tracking.client import existing_store

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromium-driver"),
]
CARD = "[data-testid='experiment-view-compare-runs-card']"


class Store(NamedTuple):
    root: Path
    runs: dict[str, Run]
    page: str  # of one run, as it is printed


class Page:
    """MLflow's UI in a browser; everything may take its time to appear."""

    def __init__(self, browser: webdriver.Chrome, address: str) -> None:
        self.browser = browser
        self.address = address

    def open(self, path: str) -> None:
        self.browser.get("about:blank")  # another fragment alone loads no page
        self.browser.get(f"{self.address}/#/{path}")

    def until(self, found: Callable[[], object], what: object):
        wait = WebDriverWait(self.browser, 90, ignored_exceptions=[StaleElementReferenceException])
        try:
            return wait.until(lambda _: found())
        except TimeoutException:
            raise AssertionError(f"{what} is not in:\n{self.text()}") from None

    def all(self, selector: str) -> list:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self) -> str:
        return self.browser.find_element(By.TAG_NAME, "body").text

    def shows(self, *texts: str) -> None:
        for text in texts:
            self.until(lambda text=text: text in self.text(), text)

    def cells(self, column: str) -> dict[str, str]:
        """A column of the table of runs, by run id."""
        found = {}
        for cell in self.all(f".ag-row [col-id='{column}']"):
            row = cell.find_element(By.XPATH, "ancestor::*[@row-id]")
            found[row.get_attribute("row-id")] = cell.text
        return found


@pytest.fixture(scope="module")
def store(finished_workspace, mlflow_tables, tmp_path_factory) -> Store:
    """Three runs, with z_dim 2, 4 and 8."""
    root = tmp_path_factory.mktemp("store")
    shutil.copytree(finished_workspace, root, dirs_exist_ok=True)
    shutil.copy(mlflow_tables, root)
    with pytest.MonkeyPatch.context() as patch:
        use_folder(patch, root)
        for z_dim in (2, 4, 8):
            patch.setenv("DVC_EXP_NAME", f"code-of-{z_dim}")
            set_params(root, {"z_dim": z_dim})
            train.main()
            evaluate.main()
            log.main()
        runs = {run.info.run_name: run for run in runs_of(client_of(root))}
        address = existing_store(root).url(runs["code-of-8"])
    return Store(root, runs, address.partition("#/")[2])


@pytest.fixture(scope="module")
def page(store, tmp_path_factory) -> Iterator[Page]:
    """`make ui`, and a browser that has never seen it."""
    folder, port = tmp_path_factory.mktemp("ui"), free_port()
    make = ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "ui", "-o", "setup"]
    make += [f"VENV={sys.prefix}", f"PORT={port}", f"CURDIR={store.root}"]
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # Wide and high: what is out of sight is not drawn.
    size, profile = "--window-size=2400,6000", f"--user-data-dir={folder / 'profile'}"
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", size, profile):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # MLflow sets MLFLOW_TRACKING_URI to the store of the test before.
    shell = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    with started(make, store.root, shell | {"PYTHONPATH": str(ROOT)}) as process:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        log = store.root / "server.log"
        while not log.read_text().endswith("\n"):  # make asks the server, too
            time.sleep(0.1)
        (line,) = log.read_text().splitlines()
        assert "workflowType=machine_learning" in line, "make prints the link, and nothing else"
        with webdriver.Chrome(options, webdriver.ChromeService(DRIVER)) as browser:
            yield Page(browser, f"http://127.0.0.1:{port}")


@pytest.fixture(autouse=True)
def no_errors(page) -> Iterator[None]:
    """The UI asks the server for nothing that it refuses, and no script fails."""
    yield
    log = [entry["message"] for entry in page.browser.get_log("browser")]
    known = ("mlflow/users/current", "ResizeObserver loop")  # no accounts; a slow layout
    errors = [line for line in log if "SEVERE" in line and not any(name in line for name in known)]
    assert errors == []


def test_address_of_the_store_is_in_no_command_line(page, store):
    """Every user of the machine can read them, and the address may have a password in it."""
    processes = psutil.process_iter(["cmdline"])
    commands = [" ".join(process.info["cmdline"] or ()) for process in processes]
    assert any("mlflow ui" in command for command in commands)
    assert not any(f"{store.root}/mlflow.db" in command for command in commands)


def test_table_of_the_printed_link_shows_parameters_and_test_metrics(page, store):
    page.open("experiments/1/runs?viewStateShareKey=results&workflowType=machine_learning")
    page.shows("Model training", *store.runs)
    runs = store.runs.values()
    wanted = {run.info.run_id: run.data.params["z_dim"] for run in runs}
    page.until(lambda: page.cells("params.`z_dim`") == wanted, wanted)
    metrics = {run.info.run_id: str(run.data.metrics["test/neg_elbo"]) for run in runs}
    page.until(lambda: page.cells("metrics.`test/neg_elbo`") == metrics, metrics)


def test_charts_of_three_runs_begin_with_metrics_and_end_with_pictures(page, store):
    page.open("experiments/1/runs?compareRunsMode=CHART&workflowType=machine_learning")
    page.shows("train/neg_elbo", "val/kl")
    page.shows("view/training-generated")
    text = page.text()
    sections = [text.index(f"\n{name}\n(") for name in ("test", "train", "val", "view")]
    assert sections == sorted(sections)


def test_page_of_a_run_has_the_note_the_data_and_the_model(page, store):
    page.open(store.page)
    page.shows("Description", "git checkout ", "Logged models (1)", "Ready", "Datasets")


def test_pictures_of_a_run_are_loaded(page, store):
    path, _, query = store.page.partition("?")
    page.open(f"{path}/model-metrics?{query}")
    for key in ("generated", "reconstructed", "training-generated", "training-reconstructed"):
        selector = f"{CARD} img[src*='view~{key}%2Bstep%2B0%2B']"
        picture = page.until(lambda selector=selector: page.all(selector), key)[0]
        page.until(lambda picture=picture: picture.get_property("naturalWidth") > 0, key)

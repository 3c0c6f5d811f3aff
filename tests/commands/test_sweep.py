"""What `sweep new` plans and refuses, and what workers take, in a store of their own."""

import argparse
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from threading import Barrier

import optuna
import pytest
from conftest import error_about
from helpers.repo import Repo
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from pipeline.commands import sweep
from pipeline.commands.sweeps import experiment, ray_cluster, space, study, worker
from pipeline.commands.sweeps.experiment import StageError, UnfitError
from pipeline.errors import UserError
from pipeline.params import load_params
from pipeline.paths import DVC_LOCK
from pipeline.runtime.git import git_bytes

NEW = {"space": ["z_dim=2,4"], "trials": None, "seeds": 0, "minimize": "val/neg_elbo"}
MANY = ",".join(map(str, range(1, 102)))
NEW |= {"sampler": None, "grace": 240}


@pytest.fixture(scope="module")
def repo(repro_repo, tmp_path_factory) -> Repo:
    return repro_repo.copy(tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def root(repo, monkeypatch):
    """The repository as the working directory, without a store."""
    monkeypatch.chdir(repo.root)
    for name in ("OPTUNA_STORAGE", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    yield repo.root
    (repo.root / "sweeps.db").unlink(missing_ok=True)


def command(*words: str) -> None:
    parser = argparse.ArgumentParser()
    sweep.add_arguments(parser)
    sweep.main(parser.parse_args(words))


def new(name: str = "widths", **changes: object) -> None:
    sweep.new(argparse.Namespace(name=name, **NEW | changes), sweep.home())


@pytest.fixture(scope="module")
def base(repo):
    return load_params(repo.root / "params.yaml")


@pytest.mark.parametrize(
    ("word", "distribution"),
    [
        ("z_dim=2..64", IntDistribution(2, 64)),
        ("z_dim=2..64:log", IntDistribution(2, 64, log=True)),
        ("learning_rate=1e-4..1e-2:log", FloatDistribution(1e-4, 1e-2, log=True)),
        ("beta=0..4", FloatDistribution(0, 4)),
        ("h_dim=200,400", CategoricalDistribution([200, 400])),
        ("activation=relu,tanh", CategoricalDistribution(["relu", "tanh"])),
        ("conditional=true,false", CategoricalDistribution([True, False])),
        ("sigma=learned,optimal,0.1", CategoricalDistribution(["learned", "optimal", 0.1])),
        ("learning_rate=1e-3", CategoricalDistribution([1e-3])),
    ],
)
def test_values_and_ranges_have_the_type_of_the_parameter(base, word, distribution):
    assert space.parse([word], base) == {word.partition("=")[0]: distribution}


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"space": ["z_dmi=2,4"]}, "'z_dmi'"),
        ({"space": ["z_dim"]}, "'z_dim'"),
        ({"space": [""]}, "''"),
        ({"space": ["z_dim="]}, "'z_dim='"),
        ({"space": ["z_dim=2,"]}, "'z_dim=2,'"),
        ({"space": ["z_dim=2.."]}, "sweep: z_dim"),
        ({"space": ["z_dim=2...8"]}, "sweep: z_dim"),
        ({"space": ["beta=1..2:LOG"]}, "sweep: beta"),
        ({"space": ["beta=1,1.0"]}, "sweep: beta"),
        ({"space": ["likelihood=bernoulli,gaussian"]}, "sweep: likelihood"),
        ({"space": ["sigma=0.1..1"], "trials": 3}, "sweep: sigma"),
        ({"sampler": "random"}, "--sampler"),
        ({"space": [f"{key}={MANY}" for key in ("z_dim", "h_dim")]}, "sweep"),
        ({"space": ["z_dim=2", "z_dim=4"]}, "sweep: z_dim"),
        ({"space": ["z_dim=2,2"]}, "sweep: z_dim"),
        ({"space": ["z_dim=0,4"]}, "sweep: z_dim"),
        ({"space": ["z_dim=2,a"]}, "sweep: z_dim"),
        ({"space": ["z_dim=[2"]}, "sweep: z_dim: '[2'"),
        ({"space": ["=2"]}, "'=2'"),
        (
            {"space": ["prior=normal", "prior_components=2..9"], "trials": 3},
            "sweep: prior_components",
        ),
        ({"space": ["z_dim=8..2"], "trials": 3}, "sweep: z_dim"),
        ({"space": ["z_dim=2..2"], "trials": 3}, "sweep: z_dim"),
        ({"space": ["conditional=false..true"], "trials": 3}, "sweep: conditional"),
        ({"space": ["z_dim=2..5.5"], "trials": 3}, "sweep: z_dim"),
        ({"space": ["beta=0..4:log"], "trials": 3}, "sweep: beta"),
        ({"space": ["activation=relu..tanh"], "trials": 3}, "sweep: activation"),
        ({"space": ["z_dim=2..8"]}, "sweep: z_dim"),  # a range in a grid
        ({"space": ["dataset=mnist,kmnist"]}, "sweep: dataset"),
        ({"space": ["eval_samples=5,10"]}, "sweep: eval_samples"),
        ({"space": ["val_size=50,100"]}, "sweep: val_size"),
        ({"space": ["binarize=none,fixed"]}, "sweep: binarize"),
        ({"space": ["eval_proposal_scale=1.2,1.4"]}, "sweep: eval_proposal_scale"),
        ({"space": ["device=auto,cpu"]}, "sweep: device"),
        ({"space": ["objective=elbo,iwae", "beta=1,2"]}, "sweep: beta"),
        ({"space": ["seed=1,2"], "seeds": 2}, "seed"),
        ({"minimize": "test/nll"}, "test/nll"),
        ({"minimize": "val/nll"}, "val/nll"),
        ({"name": "a/b"}, "'a/b'"),
        ({"name": "a..b"}, "'a..b'"),
        ({"name": "-s"}, "'-s'"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused(root, changes, subject):
    with error_about(subject):
        new(**changes)


def test_a_search_may_draw_combinations_without_a_meaning(root):
    new("priors", space=["prior=normal,vamp", "prior_components=20..30"], trials=2)
    new("objectives", space=["beta=0..2", "objective=iwae,elbo"], trials=2)


def test_a_sweep_is_over_a_commit(root):
    with (root / "params.yaml").open("a") as params:
        params.write("# more\n")
    try:
        with error_about("params.yaml"):
            new()
    finally:
        experiment.git("checkout", "-q", ".", at=root)


def test_an_interrupted_plan_is_completed_and_another_one_refused(root):
    new(space=["z_dim=2,4,8"])
    with error_about("widths"):
        new(space=["z_dim=2,4"])
    new(space=["z_dim=2,4,8"])
    found, _ = study.load("widths", root)
    assert [each.system_attrs["fixed_params"]["z_dim"] for each in found.trials] == [2, 4, 8]
    with error_about("'other'"):
        study.load("other", root)
    study.create("torn", study.load("widths", root)[1], [{"z_dim": 2}], root)
    with error_about("torn"):
        study.load("torn", root)


@pytest.mark.parametrize(
    ("directions", "trials"), [(["minimize"], 3), (["maximize"], 0), (["minimize"] * 2, 0)]
)
def test_the_study_of_another_program_is_refused_and_stays_as_it_is(root, directions, trials):
    store = f"sqlite:///{root}/sweeps.db"
    other = optuna.create_study(storage=store, study_name="widths", directions=directions)
    for _ in range(trials):
        other.enqueue_trial({})
    with error_about("widths"):
        new()
    assert len(other.trials) == trials and other.user_attrs == {}


def test_a_plan_that_was_killed_before_its_first_trial_is_completed(root):
    optuna.create_study(storage=f"sqlite:///{root}/sweeps.db", study_name="widths")
    new()
    assert len(study.load("widths", root)[0].trials) == 2


def test_a_search_draws_with_the_sampler_that_is_named(root):
    new(trials=2, sampler="random")
    assert type(study.load("widths", root)[0].sampler) is optuna.samplers.RandomSampler


def test_a_store_that_cannot_be_reached_is_one_line(root, monkeypatch):
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql+psycopg://x:y@127.0.0.1:1/none")
    for words in (("new", "widths", "z_dim=2,4"), ("work", "widths")):
        with error_about("optuna"):
            command(*words)


@pytest.mark.parametrize("address", ["mysql", "sqlite:///{y}", "postgresql://x:y@host:port/z"])
def test_what_is_no_address_of_a_store_is_one_line(root, monkeypatch, address):
    monkeypatch.setenv("OPTUNA_STORAGE", address)
    with pytest.raises(UserError, match=r"^(OPTUNA_STORAGE|optuna): "):
        command("new", "widths", "z_dim=2,4")


@pytest.mark.parametrize("name", ["a?b", "a%20b", "a{b}", "100% (é) #"])
def test_the_default_store_is_in_the_root_whatever_its_name(tmp_path, monkeypatch, name):
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    root = tmp_path / "parent" / name
    root.mkdir(parents=True)
    plan = study.Plan("val/kl", "tpe", 240, 0, 0, {}, "", {})
    study.create("widths", plan, [], root)
    assert study.load("widths", root)[1] == plan
    assert [*root.parent.iterdir(), *root.iterdir()] == [root, root / "sweeps.db"]


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg://u:p@s3cret@server.invalid/db",
        "postgresql+psycopg://u:a{s3cret}b@server.invalid/db",
        "postgresql+psycopg://u:a{}s3cret@server.invalid/db",
        "postgresql+psycopg://u:a@server.invalid:s3cret@/db",
    ],
)
def test_a_message_of_the_store_has_no_password(root, monkeypatch, address):
    monkeypatch.setenv("OPTUNA_STORAGE", address)
    with pytest.raises(UserError, match=r"^(OPTUNA_STORAGE|optuna): ") as error:
        command("show", "widths")
    assert "s3cret" not in str(error.value) and "\n" not in str(error.value)


def test_jobs_of_ray_get_the_variables_of_the_store_of_mlflow_and_of_the_gpu(monkeypatch):
    shared = {
        "OPTUNA_STORAGE": "postgresql://server/db", "GPU_JOBS": "2", "MLFLOW_TRACKING_URI": "x",
        "MLFLOW_EXPERIMENT_NAME": "mine", "MLFLOW_TRACKING_PASSWORD": "s3cret",
    }  # fmt: skip
    own = {"PATH": "/bin", "DVC_ROOT": "/here", "MLFLOWS": "x"}
    monkeypatch.setattr(ray_cluster.os, "environ", shared | own)
    assert ray_cluster.shared_variables() == shared


def test_ray_is_refused_without_remotes_and_a_store_that_nodes_share(root):
    command("new", "widths", "z_dim=2,4")
    with error_about("--ray"):
        command("work", "widths", "--ray", "auto")
    with error_about("--gpus"):
        command("work", "widths", "--gpus", "1")
    with pytest.raises(SystemExit):
        command("work", "widths", "--jobs", "0")


def test_a_clone_with_something_else_is_refused(root):
    new()
    _, plan = study.load("widths", root)
    study.check_here("widths", plan, root)
    for change in ({"baseline": "0" * 40}, {"versions": {"torch": "0"}}):
        with error_about("widths"):
            study.check_here("widths", study.Plan(**{**vars(plan), **change}), root)
    clone = experiment.open_clone(root, plan.baseline)
    experiment.require_data(clone)
    with error_about("data/raw"):
        experiment.require_cached([sweep.Path("data/raw")], clone.file("HEAD", DVC_LOCK), root)


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"dataset": "fashion_mnist"}, "dvc.yaml: download"),
        ({"val_size": 0}, "params.yaml: val_size"),
    ],
)
def test_a_commit_that_no_trial_can_begin_with_is_refused(
    repo, tmp_path, monkeypatch, changes, subject
):
    """Workers would prepare the dataset, and train a classifier each."""
    other = repo.copy(tmp_path / "other")
    other.set(**changes)
    other.commit()
    monkeypatch.chdir(other.root)
    with error_about(subject):
        new()


def test_a_worker_begins_no_trial_with_other_files_or_without_data(
    root, repo, tmp_path, monkeypatch
):
    other = repo.copy(tmp_path / "other")
    monkeypatch.chdir(other.root)
    monkeypatch.setattr(worker, "run_trials", None)
    new()
    with (other.root / "params.yaml").open("a") as params:
        params.write("# more\n")
    with error_about("params.yaml"):
        command("work", "widths")
    other.commit()
    with error_about("widths"):
        command("work", "widths")
    other.run("git", "reset", "-q", "--hard", "HEAD~")
    (other.root / ".dvc/cache").rename(tmp_path / "cache")
    with error_about("data/dataset.safetensors"):
        command("work", "widths")


def work(root, monkeypatch, values):
    """Work on `widths` with values in place of trainings; exceptions are raised."""

    def run_seeds(name, plan, params, clone):
        value = values.pop(0) if values else 1.0
        if isinstance(value, BaseException):
            raise value
        return value

    monkeypatch.setattr(worker, "run_seeds", run_seeds)
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.1)
    found, plan = study.load("widths", root)
    clone = experiment.open_clone(root, plan.baseline)
    worker.run_trials(found, plan, clone, lambda: None)
    return found.trials


def values(trials):
    return [trial.value for trial in trials]


def test_parameters_that_cannot_be_trained_with_fail_for_good(root, monkeypatch):
    new()
    trials = work(root, monkeypatch, [UnfitError("widths-0000", "diverged"), 5.0])
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].user_attrs["reason"] == "diverged"


@pytest.mark.parametrize("error", [UserError("dvc push", "503"), KeyboardInterrupt()])
def test_after_any_other_failure_the_trial_waits_again_behind_the_others(root, monkeypatch, error):
    new(space=["learning_rate=1e-4..1e-2"], trials=2)
    with pytest.raises(type(error)):
        work(root, monkeypatch, [error])
    found, _ = study.load("widths", root)
    failed, _ = found.trials
    assert {trial.state for trial in found.trials} == {TrialState.WAITING}
    trials = work(root, monkeypatch, [2.0, 3.0])
    assert values(trials) == [3.0, 2.0]
    assert trials[0].params == failed.params  # not another draw


def test_a_stage_that_fails_ends_a_worker_after_all_other_trials(root, monkeypatch, capsys):
    new(space=["z_dim=2,4,8"])
    with error_about("widths-0000"):
        work(root, monkeypatch, [StageError("widths-0000", "needs a GPU"), 2.0, 3.0])
    sweep.show(argparse.Namespace(name="widths"), root)
    assert "tried again by `sweep work`: widths-0000: needs a GPU" in capsys.readouterr().out
    assert values(work(root, monkeypatch, [1.0])) == [1.0, 2.0, 3.0]


def test_stages_that_fail_in_a_row_end_a_worker(root, monkeypatch):
    """As with a full disk; nothing is lost."""
    new(space=["z_dim=2,4,8,16"])
    full = [StageError(f"widths-000{number}", "disk full") for number in (0, 1, 2)]
    with error_about("widths-0002"):
        work(root, monkeypatch, list(full))
    assert values(work(root, monkeypatch, [])) == [1.0] * 4


def test_failures_between_successes_do_not_end_a_worker(root, monkeypatch):
    new(space=["z_dim=2,4,8,16"])
    with error_about("widths-0002"):
        work(root, monkeypatch, [1.0, 2.0, StageError("widths-0002", "disk full"), 4.0])
    found, _ = study.load("widths", root)
    assert values(found.trials) == [1.0, 2.0, None, 4.0]


def test_a_worker_that_lives_keeps_its_trial_beyond_the_grace(root, monkeypatch):
    new(space=["z_dim=2"], grace=3)
    found, plan = study.load("widths", root)
    states = []

    def longer(name, plan, params, clone):
        time.sleep(6)
        study.reopen(found)
        states.extend(trial.state for trial in found.trials)
        return 5.0

    monkeypatch.setattr(worker, "run_seeds", longer)
    clone = experiment.open_clone(root, plan.baseline)
    worker.run_trial(found, plan, clone, study.take(found, but=()))
    assert states == [TrialState.RUNNING]


def test_the_trial_of_a_killed_worker_waits_again(root, monkeypatch):
    new(grace=1)
    found, _ = study.load("widths", root)
    study.take(found, but=())  # by a worker that then is silent
    assert values(work(root, monkeypatch, [3.0, 4.0])) == [4.0, 3.0]


def test_nothing_is_run_twice(root, monkeypatch, capsys):
    new(space=["z_dim=2,4"], trials=10)  # all equal once in 512 times
    trials = work(root, monkeypatch, [3.0, 4.0])  # another training would have value 1
    assert sorted(set(values(trials))) == [3.0, 4.0]
    command("show", "widths")
    assert capsys.readouterr().out.count("widths-000") == 2
    command("fetch", "widths")
    assert "0 of 2 finished experiments are here" in capsys.readouterr().out


ENDS = [5.0, UnfitError("x", "y"), StageError("x", "y"), UserError("x", "y")]


@pytest.mark.parametrize("end", ENDS)
def test_a_worker_that_was_silent_for_too_long_does_not_change_a_finished_trial(
    root, monkeypatch, end
):
    new(space=["z_dim=2"])
    found, plan = study.load("widths", root)
    trial = study.take(found, but=())

    def overtaken(name, plan, params, clone):
        study.finish(found, trial, 4.0)
        if isinstance(end, UserError):
            raise end
        return end

    monkeypatch.setattr(worker, "run_seeds", overtaken)
    before = signal.getsignal(signal.SIGTERM)
    with suppress(UserError):
        worker.run_trial(found, plan, experiment.open_clone(root, plan.baseline), trial)
    assert signal.getsignal(signal.SIGTERM) == before or type(end) is UserError
    signal.signal(signal.SIGTERM, before)
    assert values(work(root, monkeypatch, [])) == [4.0]


def test_a_late_result_counts_if_nobody_has_taken_the_trial_since(root, monkeypatch):
    new(space=["z_dim=2"])
    found, _ = study.load("widths", root)
    trial = study.take(found, but=())
    study.give_back(found, trial, "its worker was killed")
    study.finish(found, trial, 5.0)
    assert values(work(root, monkeypatch, [])) == [5.0]


def test_a_trial_that_another_worker_has_taken_is_not_given_back(root):
    new(space=["z_dim=2"])
    found, _ = study.load("widths", root)
    silent = study.take(found, but=())
    study.give_back(found, silent, "its worker was killed")
    other = study.take(found, but=())
    study.give_back(found, silent, "stopped")
    assert found.trials[0].state == TrialState.RUNNING
    study.give_back(found, other, "stopped")
    assert found.trials[0].state == TrialState.WAITING


def test_a_worker_waits_for_a_trial_that_failed_here_and_runs_elsewhere(root, monkeypatch):
    new(space=["z_dim=2"])
    found, _ = study.load("widths", root)
    elsewhere = []

    def another_takes_it(mine):
        if found.trials[0].user_attrs.get("error"):
            elsewhere.append(study.take(found, but=()))

    monkeypatch.setattr(study, "reopen", another_takes_it)
    monkeypatch.setattr(
        worker.time, "sleep", lambda seconds: study.finish(found, elsewhere[0], 4.0)
    )
    assert values(work(root, monkeypatch, [StageError("widths-0000", "disk full")])) == [4.0]


def test_workers_that_start_at_once_take_each_trial_once(root):
    new(space=[f"z_dim={','.join(map(str, range(2, 42)))}"])
    barrier = Barrier(4)

    def take_all(_):
        mine, taken = study.load("widths", root)[0], []
        barrier.wait()
        while trial := study.take(mine, but=()):
            taken.append(trial.number)
        return taken

    with ThreadPoolExecutor(4) as pool:
        taken = [number for numbers in pool.map(take_all, range(4)) for number in numbers]
    assert sorted(taken) == list(range(40))


def test_what_cannot_be_trained_with_is_not_drawn_and_run_again(root, monkeypatch):
    new(space=["z_dim=2"], trials=3)
    ends = [UnfitError("widths-0000", "diverged")]
    trials = work(root, monkeypatch, ends)
    assert [each.user_attrs["reason"] for each in trials] == ["diverged"] * 3


def test_an_outage_of_the_store_does_not_end_the_heartbeats(root, monkeypatch):
    new()
    found, _ = study.load("widths", root)
    trial = study.take(found, but=())
    beats = []

    def record(trial_id):
        beats.append(trial_id)
        if len(beats) < 3:
            raise optuna.exceptions.StorageInternalError

    monkeypatch.setattr(found._storage, "record_heartbeat", record)
    with worker.heartbeat(found, trial, 0.01):
        time.sleep(0.5)
    assert len(beats) > 3


def test_the_report_says_what_failed_and_why(root, monkeypatch, capsys):
    new(space=["z_dim=2,4,8,16,32", "h_dim=20,40"])
    sweep.show(argparse.Namespace(name="widths"), root)
    work(root, monkeypatch, [UnfitError("widths-0000", "z < 3"), *map(float, range(9))])
    sweep.show(argparse.Namespace(name="widths"), root)
    before, after = capsys.readouterr().out.split("10 waiting\n")[-1].split("9 complete, 1 fail")
    assert "Wrote" not in before
    assert after.index("widths-0001") < after.index("widths-0009")
    assert "failed: widths-0000: z < 3" in after
    assert "importance" in after
    page = (root / "reports/sweeps/widths.html").read_text()
    assert page.count("plotly-graph-div") >= 3 and "z &lt; 3" in page and "z < 3" not in page


def test_the_report_names_machines_whose_results_differ_by_rounding(root, monkeypatch, capsys):
    new()
    monkeypatch.setattr(worker.run_note, "cpu", iter(["one CPU", "another"]).__next__)
    work(root, monkeypatch, [1.0, 2.0])
    command("show", "widths")
    assert "results of one CPU and another differ" in capsys.readouterr().out


def test_the_terminal_shows_the_best_trials(root, monkeypatch, capsys):
    new(space=[f"z_dim={','.join(map(str, range(2, 24)))}"])
    work(root, monkeypatch, [float(value) for value in range(22)])
    command("show", "widths")
    output = capsys.readouterr().out
    assert "widths-0019" in output and "widths-0020" not in output
    sweep.advance(sweep.tqdm(disable=True), study.load("widths", root)[0])
    assert "22 of 22 trials are done, best 0.00" in capsys.readouterr().out


def recorded(repo: Repo, folder, **changes: object) -> experiment.Clone:
    """A clone with an experiment `x` that has such parameters, and a history of four epochs."""
    other = repo.copy(folder / "other")
    baseline = other.run("git", "rev-parse", "HEAD").strip()
    other.set(**changes)
    lines = ["epoch,val/neg_elbo,val/kl", "1,7,1", "2,5,2", "3,6,3", "4,8,4"]
    (other.root / "reports/history.csv").write_text("\n".join(lines))
    other.commit()
    clone = experiment.open_clone(other.root, baseline)
    other.run("git", "update-ref", clone.ref("x"), "HEAD")
    return clone


@pytest.mark.parametrize(
    ("changes", "value"),
    [({}, 4.0), ({"patience": 3}, 2.0), ({"patience": 3, "warmup_epochs": 2}, 3.0)],
)
def test_the_value_is_of_the_epoch_whose_weights_the_model_has(repo, tmp_path, changes, value):
    clone = recorded(repo, tmp_path, num_epochs=4, **changes)
    assert clone.value("x", "val/kl") == value
    params = clone.params().model_copy(update={"num_epochs": 4, **changes})
    clone.check("x", params)
    with error_about("x"):
        clone.check("x", params.model_copy(update={"z_dim": 99}))


def test_an_experiment_with_other_code_is_not_taken_for_a_trial(repo, tmp_path):
    clone = recorded(repo, tmp_path)
    clone.check("x", clone.params())
    with (clone.root / "pipeline/paths.py").open("a") as code:
        code.write("# more\n")
    other = Repo(clone.root, repo.mirror)
    other.commit()
    other.run("git", "update-ref", clone.ref("x"), "HEAD")
    with error_about("x"):
        clone.check("x", clone.params())


def test_a_name_is_published_only_to_remotes_of_git_and_dvc_and_with_its_files(repo, tmp_path):
    clone = recorded(repo, tmp_path)
    other, bare = Repo(clone.root, repo.mirror), str(tmp_path / "bare.git")
    other.run("git", "init", "-q", "--bare", bare)
    for name in ("backup", "origin"):
        other.run("git", "remote", "add", name, bare)
    assert experiment.open_clone(other.root, clone.baseline).remote == ""
    other.run("dvc", "remote", "add", "--local", "-q", "-d", "store", str(tmp_path / "store"))
    clone = experiment.open_clone(other.root, clone.baseline)
    assert clone.remote == "origin"
    (other.root / ".dvc/cache").rename(tmp_path / "cache")
    with error_about("data/dataset.safetensors"):
        clone.publish("x")
    assert not clone.published(["x"])


def test_more_experiments_are_fetched_than_a_command_line_may_name(repo, tmp_path):
    clone = recorded(repo, tmp_path)
    bare = str(tmp_path / "bare.git")
    long = "/".join(["x" * 200] * 18)  # so that a few hundred names suffice
    names = [f"{long}/{number}" for number in range(400)]
    commit = experiment.git("rev-parse", clone.ref("x"), at=clone.root).strip()
    created = "".join(f"create {clone.ref(name)} {commit}\n" for name in names).encode()
    experiment.git("init", "-q", "--bare", bare, at=tmp_path)
    experiment.git("push", "-q", bare, clone.ref("x"), at=clone.root)
    git_bytes("update-ref", "--stdin", at=tmp_path / bare, stdin=created)
    clone = replace(clone, remote=bare)
    assert clone.fetch_refs([*names, "unpublished"])
    assert all(map(clone.has, names[::50])) and not clone.has("unpublished")
    assert clone.fetch_refs(["unpublished"]) is False


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ("failed to run: python, exited with -9", UnfitError),
        ("params.yaml: learning_rate: diverged\nfailed to run: python, exited with 3", UnfitError),
        ("a file: disk full\nfailed to run: python, exited with 2", StageError),
        ("ERROR: unexpected error", UserError),
        ("", UserError),
    ],
)
def test_only_some_failures_are_due_to_the_parameters(output, kind):
    assert type(experiment.failure("x", output)) is kind


def test_each_run_of_a_trial_has_a_name_and_a_seed():
    plan = study.Plan("val/neg_elbo", "tpe", 240, 1, 2, {}, "", {})
    assert worker.seeds(plan) == [("-s1", {"seed": 1}), ("-s2", {"seed": 2})]


def test_the_value_of_a_trial_is_the_mean_over_its_seeds(repo, tmp_path):
    clone = recorded(repo, tmp_path)
    other = Repo(clone.root, repo.mirror)
    for seed, kl in ((1, 2), (2, 5)):
        other.set(seed=seed)
        (other.root / "reports/history.csv").write_text(f"epoch,val/neg_elbo,val/kl\n3,7,{kl}\n")
        other.commit()
        other.run("git", "update-ref", clone.ref(f"x-s{seed}"), "HEAD")
    plan = study.Plan("val/kl", "tpe", 240, 1, 2, {}, "", {})
    assert worker.run_seeds("x", plan, {}, clone) == 3.5
    with pytest.raises(UnfitError, match="beta"):
        worker.run_seeds("x", plan, {"objective": "iwae", "beta": 2}, clone)

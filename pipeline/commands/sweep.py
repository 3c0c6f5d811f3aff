"""Search over parameters: every trial is a DVC experiment with one MLflow run.

  sweep new widths z_dim=2..64:log h_dim=200,400 --trials 40    plan a search
  sweep new grid z_dim=2,5,10,20 activation=relu,gelu           plan a grid
  sweep work widths     run what is left: here, or in any clone that shares store and remotes
  sweep show widths     print and draw the results
  sweep fetch widths    bring the experiments of all machines here

The store is sweeps.db in the root, or what OPTUNA_STORAGE names (postgresql+psycopg://...).
"""

import argparse
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import TrialState
from tqdm import tqdm

from pipeline.commands.sweeps import experiment, ray_cluster, report, space, study, worker
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.paths import SWEEPS
from pipeline.runtime.dvc import child
from pipeline.runtime.files import home, write_output
from pipeline.training.fit import TERMS

MINIMIZE = "validation metric (default: val/neg_elbo)"
GRACE = "a worker that is silent for so long counts as killed"
MOST = 1_000_000
DATA_STAGES = ["download", "train_classifier"]
MINIMIZED = tuple(f"val/{term}" for term in TERMS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line."""
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    new = actions.add_parser("new", help="plan a sweep over the commit that is checked out")
    new.add_argument("name", metavar="NAME")
    new.add_argument("space", metavar="KEY=...", nargs="+", help="1,2,5 (values) or 1..5[:log]")
    new.add_argument("--trials", type=positive, metavar="N", help="of a search (default: a grid)")
    new.add_argument("--sampler", choices=study.SAMPLERS, help="of a search (default: tpe)")
    new.add_argument("--seeds", type=positive, metavar="N", default=0, help="runs per trial")
    new.add_argument("--minimize", metavar="METRIC", default="val/neg_elbo", help=MINIMIZE)
    new.add_argument("--grace", type=positive, metavar="SECONDS", default=240, help=GRACE)
    work = actions.add_parser("work", help="run trials until none is left")
    work.add_argument("name", metavar="NAME")
    work.add_argument("--jobs", type=positive, metavar="N", default=1, help="trials at a time")
    work.add_argument("--ray", metavar="ADDRESS", help="on the nodes of a Ray cluster")
    work.add_argument(
        "--gpus", type=float, metavar="X", default=0, help="per Ray job, such as 0.25"
    )
    for action, text in (("show", "print and draw the results"), ("fetch", "get the experiments")):
        actions.add_parser(action, help=text).add_argument("name", metavar="NAME")


def positive(word: str) -> int:
    """A number from 1 to a million, for argparse."""
    value = int(word)
    if not 1 <= value <= MOST:
        raise argparse.ArgumentTypeError(f"{word} is not a number from 1 to {MOST}")
    return value


def main(arguments: argparse.Namespace) -> None:
    """Run the action."""
    action = {"new": new, "work": work, "show": show, "fetch": fetch}[arguments.action]
    with study.store_errors():
        action(arguments, home())


def new(arguments: argparse.Namespace, root: Path) -> None:
    """Plan a sweep."""
    base, shared = baseline(arguments.minimize, root)
    varied = space.parse(arguments.space, base)
    if arguments.seeds and "seed" in varied:
        raise UserError("seed", "varies already; leave out --seeds")
    if arguments.sampler and not arguments.trials:
        raise UserError("--sampler", "is for a search; set --trials N")
    if arguments.trials:
        space.require_meaning(varied, base)
        trials: list[dict[str, Any]] = [{}] * arguments.trials  # drawn when they are taken
    else:
        trials = list(space.grid(varied, base))
    plan = study.plan_here(
        root, varied, minimize=arguments.minimize, sampler=arguments.sampler or "tpe",
        grace=arguments.grace, seeds=arguments.seeds, trials=len(trials),
    )  # fmt: skip
    study.create(arguments.name, plan, trials, root)
    runs = len(trials) * (arguments.seeds or 1)
    print(f"sweep: planned {len(trials)} trials, {runs} runs, over {', '.join(varied)}")
    where = "" if shared else " (no git and DVC remotes: in this clone only)"
    print(f"sweep: to run them: python -m pipeline sweep work {arguments.name}{where}")


def baseline(metric: str, root: Path) -> tuple[Params, bool]:
    """The parameters of HEAD, and whether there are remotes. Raises UserError about what misses."""
    if metric not in MINIMIZED:  # test metrics are for the report on what was chosen
        raise UserError(metric, f"cannot be minimized; choose from {', '.join(MINIMIZED)}")
    experiment.require_clean(root)
    clone = experiment.open_clone(root, study.here(root)["baseline"])
    if changed := experiment.dvc("status", root, targets=DATA_STAGES):
        stage, reasons = next(iter(changed.items()))
        reason = re.sub(r"[{}']", "", str(reasons[0]))
        raise UserError(f"dvc.yaml: {stage}", f"{reason}; `dvc pull`, or `dvc repro` and commit")
    base = clone.params()
    if base.val_size == 0:
        raise UserError("params.yaml: val_size", f"0 leaves no images to measure {metric} with")
    return base, bool(clone.remote)


def work(arguments: argparse.Namespace, root: Path) -> None:
    """Run trials until none is left."""
    if arguments.ray == "":
        raise UserError("--ray", "is empty; `auto` is the cluster of this machine")
    if arguments.gpus and not arguments.ray:
        raise UserError("--gpus", "is for --ray; without it a job uses the GPU that it finds")
    planned, plan = study.load(arguments.name, root)
    clone = experiment.open_clone(root, plan.baseline)
    with tqdm(unit="trial", disable=not sys.stdout.isatty()) as bar:  # in a job it is not shown
        progress = partial(advance, bar, planned)
        if arguments.ray is not None:
            ray_cluster.work(
                arguments.ray, arguments.name, clone,
                jobs=arguments.jobs, gpus=arguments.gpus, progress=progress,
            )  # fmt: skip
        else:
            study.check_here(arguments.name, plan, root)
            experiment.require_clean(root)
            experiment.require_data(clone)
            if arguments.jobs == 1:
                worker.run_trials(planned, plan, clone, progress)
            else:
                run_jobs(arguments.name, arguments.jobs, progress)
        progress()
    if left := len(study.open_trials(planned)):
        raise UserError(arguments.name, f"{left} trials are left; `sweep work` continues")
    failed = len(planned.get_trials(states=[TrialState.FAIL]))
    print(f"sweep: {arguments.name} is complete, {failed} trials failed")
    print(f"sweep: its results: python -m pipeline sweep show {arguments.name}")


def run_jobs(name: str, count: int, progress: Callable[[], None]) -> None:
    """Run workers in processes of their own, which print why one of them ends early."""
    command = child("pipeline", "sweep", "work", name)
    jobs = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]
    try:
        while any(job.poll() is None for job in jobs):
            progress()
            time.sleep(worker.POLL_SECONDS)
    finally:  # after Ctrl-C they give their trials back
        for job in jobs:
            job.terminate()
        status = [job.wait() for job in jobs]
    if killed := status.count(-signal.SIGKILL):  # as the kernel does when memory runs out
        print(f"sweep: {killed} of {count} jobs were killed", file=sys.stderr)


def advance(bar: "tqdm[None]", planned: Study) -> None:
    """Show how many trials are done, and the best value. Without a terminal: one line each time."""
    try:
        trials = planned.get_trials(deepcopy=False)
    except study.STORE_ERRORS:
        return  # the jobs report it, if it lasts
    done = sum(trial.state.is_finished() for trial in trials)
    values = [trial.value for trial in trials if trial.value is not None]
    best = f"best {min(values):.2f}" if values else "no value"
    if bar.disable and done > bar.n:
        print(f"sweep: {done} of {len(trials)} trials are done, {best}", flush=True)
    bar.total, bar.n = len(trials), done
    bar.set_postfix_str(best)


def show(arguments: argparse.Namespace, root: Path) -> None:
    """Print the trials, draw them."""
    planned, plan = study.load(arguments.name, root)
    print(report.table(planned, plan))
    path = SWEEPS / f"{arguments.name}.html"
    if content := report.page(planned, plan):
        write_output(root / path, content.encode())
        print(f"Wrote {path}: open it in a browser")


def fetch(arguments: argparse.Namespace, root: Path) -> None:
    """Bring the experiments here."""
    planned, plan = study.load(arguments.name, root)
    names = [
        experiment.trial_name(arguments.name, trial.number) + end
        for trial in planned.get_trials(deepcopy=False)
        if trial.value is not None and study.SAME_AS not in trial.user_attrs
        for end, _ in worker.seeds(plan)
    ]
    count = experiment.open_clone(root, plan.baseline).fetch(names)
    print(f"sweep: {count} of {len(names)} finished experiments are here")
    if count < len(names):
        print("sweep: the others are where they ran: without remotes nothing is shared")
    print("sweep: to compare them: python -m pipeline compare")

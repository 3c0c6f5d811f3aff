"""What a worker does: take a waiting trial, run it, report it, until every trial is done.

Not with Optuna's `optimize`, which would draw new trials when none waits, and whose heartbeat ends
at the first failure of the store.
"""

import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import Trial, TrialState

from pipeline.commands.sweeps import experiment, study
from pipeline.commands.sweeps.experiment import Clone, StageError, UnfitError
from pipeline.commands.sweeps.space import checked, suggest
from pipeline.commands.sweeps.study import REASON, SAME_AS, STORE_ERRORS, Plan
from pipeline.errors import UserError
from pipeline.tracking import run_note

POLL_SECONDS = 2.0
FAILURES = 3  # trials in a row whose stages fail: it is the machine's fault, a full disk, say


def run_trials(planned: Study, plan: Plan, clone: Clone, progress: Callable[[], None]) -> None:
    """Run trials until none is open. Waits for those of other workers: one may be killed.

    A trial of which a stage fails here is left to others. Raises UserError at the end if it is
    still open, and at once after FAILURES in a row.
    """
    failed: dict[int, UserError] = {}
    in_a_row = 0
    while True:
        study.reopen(planned)
        progress()
        if trial := study.take(planned, but=failed):
            in_a_row += 1
            try:
                run_trial(planned, plan, clone, trial)
                in_a_row = 0
            except StageError as error:
                failed[trial.number] = error
                if in_a_row == FAILURES:
                    raise
        elif not (left := study.open_trials(planned)):
            return
        elif all(each.number in failed and each.state == TrialState.WAITING for each in left):
            raise failed[left[0].number]
        else:
            time.sleep(POLL_SECONDS)


def run_trial(planned: Study, plan: Plan, clone: Clone, trial: Trial) -> None:
    """Run a trial and report its value, or the reason why there is none.

    Another worker may have finished it meanwhile, if this one was silent for too long.
    """
    with heartbeat(planned, trial, plan.grace / 4), suppress(UpdateFinishedTrialError):
        try:
            study.finish(planned, trial, evaluate(planned, plan, clone, trial))
        except UpdateFinishedTrialError:
            raise
        except UnfitError as error:
            trial.set_user_attr(REASON, error.message)
            study.finish(planned, trial)
        except StageError as error:
            study.give_back(planned, trial, error.message)
            raise
        except BaseException as error:  # not the parameters' fault
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # of --jobs, after the terminal's Ctrl-C
            words = str(error) if isinstance(error, Exception) else "its worker was stopped"
            study.give_back(planned, trial, words)
            raise


@contextmanager
def heartbeat(planned: Study, trial: Trial, seconds: float) -> Iterator[None]:
    """Give signs of life. An outage of the store that ends within the grace costs nothing."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.is_set():
            with suppress(*STORE_ERRORS):
                planned._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
            ended.wait(seconds)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def evaluate(planned: Study, plan: Plan, clone: Clone, trial: Trial) -> float:
    """The value of a trial: the mean over its seeds."""
    params = suggest(trial, plan.distributions())
    trial.set_user_attr("worker", socket.gethostname())
    trial.set_user_attr("cpu", run_note.cpu())
    for other in planned.get_trials(deepcopy=False):
        if other.params != params:
            continue
        if REASON in other.user_attrs:
            raise UnfitError(planned.study_name, other.user_attrs[REASON])
        if other.value is not None:
            trial.set_user_attr(SAME_AS, other.number)
            return other.value
    return run_seeds(experiment.trial_name(planned.study_name, trial.number), plan, params, clone)


def run_seeds(name: str, plan: Plan, params: dict[str, Any], clone: Clone) -> float:
    """Run the experiments of a configuration; return the mean of what is minimized."""
    base = clone.params()
    try:
        checked(base, params)
    except UserError as error:
        raise UnfitError(name, str(error)) from error
    values = []
    for end, seed in seeds(plan):
        clone.obtain(name + end, params | seed)
        clone.check(name + end, checked(base, params | seed))
        clone.publish(name + end)
        values.append(clone.value(name + end, plan.minimize))
    return statistics.fmean(values)


def seeds(plan: Plan) -> list[tuple[str, dict[str, int]]]:
    """The end of the name and the parameter of each run of a configuration."""
    if plan.seeds == 0:
        return [("", {})]
    return [(f"-s{seed}", {"seed": seed}) for seed in range(1, plan.seeds + 1)]

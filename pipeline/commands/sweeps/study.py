"""The study of a sweep, in Optuna's store: what it is about, and its trials.

Every trial is in the store, waiting, before the first worker starts, and a worker takes one in a
transaction. A trial ends with a value or, failed, with a reason; any other (its worker was killed,
a remote did not answer) waits again, with the parameters that were drawn.
"""

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import URL, Connection, event
from sqlalchemy.exc import SQLAlchemyError

from pipeline.commands.sweeps.space import Space
from pipeline.errors import UserError, without_password
from pipeline.runtime.fingerprint import LIBRARIES
from pipeline.runtime.git import git

REASON = "reason"  # why the parameters cannot be trained with
ERROR = "error"  # why it waits again, if a worker could say it
TAKEN = "taken"  # how often
SAME_AS = "same as"  # number of an earlier trial with the same parameters
NAME = r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*"

# ImportError: of the driver of a database.
STORE_ERRORS = (StorageInternalError, SQLAlchemyError, ImportError)
SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True)
class Plan:
    """What a sweep is about. Whoever works on it agrees with all of it."""

    minimize: str
    sampler: str
    grace: int  # seconds without a heartbeat after which a worker counts as killed
    trials: int
    seeds: int  # runs per configuration, with seeds 1 … n; 0: one run, with the seed of params.yaml
    space: dict[str, str]  # Optuna's JSON
    baseline: str  # commit
    versions: dict[str, str]  # of the libraries that compute

    def distributions(self) -> Space:
        """What varies."""
        return {key: json_to_distribution(text) for key, text in self.space.items()}


def plan_here(root: Path, space: Space, **options: Any) -> Plan:
    """The plan of a sweep over the commit that is checked out."""
    texts = {key: distribution_to_json(each) for key, each in space.items()}
    return Plan(space=texts, **options, **here(root))


def here(root: Path) -> dict[str, Any]:
    """What decides results beside parameters and the CPU family."""
    return {
        "baseline": git("rev-parse", "HEAD", at=root).strip(),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def check_here(name: str, plan: Plan, root: Path) -> None:
    """Raise UserError unless this clone has the commit and the libraries of the sweep."""
    found = here(root)
    if found["baseline"] != plan.baseline:
        advice = f"`git checkout {plan.baseline[:10]}`"
        raise UserError(name, f"is over another commit than HEAD; {advice}")
    for library, planned in plan.versions.items():
        if (installed := found["versions"].get(library)) != planned:
            message = f"was planned with {library} {planned}, here is {installed}; `make setup`"
            raise UserError(name, message)


def create(name: str, plan: Plan, trials: Sequence[Mapping[str, Any]], root: Path) -> None:
    """Create the study with all its trials, or complete one whose creation was interrupted.

    Raises UserError if the store has a study of that name with another plan, or of another program.
    """
    if not re.fullmatch(NAME, name):
        raise UserError(repr(name), "is no name for a sweep: letters, digits and _, joined by -")
    study = optuna.create_study(storage=_storage(root), study_name=name, load_if_exists=True)
    is_planned = "plan" in study.user_attrs or not study.trials  # the plan precedes the trials
    if not is_planned or study.directions != [StudyDirection.MINIMIZE]:
        raise UserError(name, "exists as a study of another program; choose another name")
    earlier = study.user_attrs.get("plan", asdict(plan))
    if different := [key for key, value in asdict(plan).items() if earlier[key] != value]:
        raise UserError(name, f"exists, with different {different[0]}; choose another name")
    study.set_user_attr("plan", asdict(plan))
    for params in trials[len(study.trials) :]:
        study.enqueue_trial(dict(params))


def load(name: str, root: Path) -> tuple[Study, Plan]:
    """The study of a sweep, and its plan. Raises UserError if there is none."""
    storage = _storage(root)
    names = [study.study_name for study in storage.get_all_studies()]
    if name not in names:
        message = f"no such sweep; there are: {', '.join(names) or 'none'}"
        raise UserError(repr(name), message)
    study = optuna.load_study(study_name=name, storage=storage)
    planned = study.user_attrs.get("plan")
    if planned is None or len(study.trials) < planned["trials"]:
        raise UserError(name, "was not planned to the end; run the same `sweep new` again")
    plan = Plan(**planned)
    storage.heartbeat_interval = storage.grace_period = plan.grace
    study.sampler = SAMPLERS[plan.sampler]()
    return study, plan


def _storage(root: Path) -> RDBStorage:
    """The store that OPTUNA_STORAGE names, or sweeps.db in the root."""
    default = URL.create("sqlite", database=str(root / "sweeps.db"))  # quotes ?, % and {
    url = os.environ.get("OPTUNA_STORAGE") or default.render_as_string(hide_password=False)
    is_sqlite = url.startswith("sqlite:")
    options: dict[str, Any] = {"pool_pre_ping": True}  # a server closes silent connections
    if is_sqlite:  # without isolation level: or Python's module begins transactions of its own
        options = {"connect_args": {"timeout": 60, "isolation_level": None}}
    try:
        storage = RDBStorage(url, engine_kwargs=options)
    except (ValueError, LookupError) as error:  # LookupError: Optuna formats { } in the address
        words = without_password(str(error), url)
        raise UserError("OPTUNA_STORAGE", f"is not the address of a database ({words})") from error
    if is_sqlite:
        # Optuna takes a trial with SELECT ... FOR UPDATE, which SQLite ignores.
        event.listen(storage.engine, "begin", _begin_immediate)
    return storage


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn a failure of the store into a UserError, in its own words without passwords."""
    try:
        yield
    except STORE_ERRORS as error:
        cause = error.__cause__ or error
        words = str(getattr(cause, "orig", cause)).strip().partition("\n")[0]
        address = os.environ.get("OPTUNA_STORAGE", "")
        raise UserError("optuna", without_password(words, address)) from error


def take(study: Study, but: Collection[int]) -> Trial | None:
    """A trial that waited, now this worker's; None if none waits but those with these numbers.

    One that others have taken before comes last: it may have ended them.
    """
    waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
    for trial in sorted(waiting, key=lambda trial: trial.user_attrs.get(TAKEN, 0)):
        if trial.number not in but and _take(study, trial):
            return Trial(study, trial._trial_id)
    return None


def _take(study: Study, trial: FrozenTrial) -> bool:
    storage, trial_id = study._storage, trial._trial_id
    # Optuna never calls a trial stale that has had no heartbeat, so it gets the first one before.
    storage.record_heartbeat(trial_id)  # type: ignore[attr-defined]
    with suppress(UpdateFinishedTrialError):
        if storage.set_trial_state_values(trial_id, TrialState.RUNNING):
            storage.set_trial_user_attr(trial_id, TAKEN, trial.user_attrs.get(TAKEN, 0) + 1)
            return True
    return False


def give_back(study: Study, trial: Trial, error: str) -> None:
    """Let a worker's trial wait again, unless another worker has taken it since."""
    recorded = study._storage.get_trial(trial._trial_id)
    if recorded.user_attrs[TAKEN] == trial.user_attrs[TAKEN]:
        _wait_again(study, trial._trial_id, error)


def finish(study: Study, trial: Trial, *values: float) -> None:
    """Report a trial: its value, or without one that it has failed.

    Unlike Optuna's `tell` also if it waits again, because this worker was silent for too long.
    """
    state = TrialState.COMPLETE if values else TrialState.FAIL
    study._storage.set_trial_state_values(trial._trial_id, state, values)


def reopen(study: Study) -> None:
    """Let the trials of killed workers wait again.

    Of two workers that do so at once, one may have taken a trial before the other lets it wait. It
    is then run twice, to the same bytes, and the name of the experiment is published once.
    """
    for trial_id in study._storage._get_stale_trial_ids(study._study_id):  # type: ignore[attr-defined]
        _wait_again(study, trial_id, "its worker was killed")


def _wait_again(study: Study, trial_id: int, error: str) -> None:
    with suppress(UpdateFinishedTrialError):
        study._storage.set_trial_user_attr(trial_id, ERROR, error)
        study._storage.set_trial_state_values(trial_id, TrialState.WAITING)


def open_trials(study: Study) -> list[FrozenTrial]:
    """Those that wait or run."""
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING, TrialState.RUNNING))

"""What a sweep has found: a table for the terminal, and a page with Optuna's plots."""

import html

import optuna
import pandas as pd
from optuna import visualization as plots
from optuna.importance import get_param_importances
from optuna.study import Study
from optuna.trial import TrialState

from pipeline.commands.sweeps.study import REASON, SAME_AS, Plan, latest

SHOWN = 20  # the best trials in the terminal


def table(study: Study, plan: Plan) -> str:
    """The trials, best first; how many there are of each state; what failed, and why."""
    trials = latest(study)
    states = pd.Series([trial.state.name.lower() for trial in trials.values()]).value_counts()
    lines = [", ".join(f"{count} {state}" for state, count in states.items())]
    done = {n: trial for n, trial in trials.items() if trial.state == TrialState.COMPLETE}
    if done:
        rows = {
            f"{study.study_name}-{number:04}": {
                plan.minimize: trial.value, **trial.params,
                "worker": trial.user_attrs.get("worker", ""),
            }
            for number, trial in done.items()
            if SAME_AS not in trial.user_attrs
        }  # fmt: skip
        frame = pd.DataFrame.from_dict(rows, orient="index").sort_values(plan.minimize)
        lines.append(frame.head(SHOWN).to_string(float_format="{:.5g}".format))
    for number, trial in trials.items():
        if trial.state == TrialState.FAIL:
            reason = trial.user_attrs.get(REASON, "its worker ended; `sweep work` tries again")
            lines.append(f"failed: {study.study_name}-{number:04}: {reason}")
    if weights := importances(study):
        listed = ", ".join(f"{key} {weight:.0%}" for key, weight in weights.items())
        lines.append(f"importance of each parameter (fANOVA): {listed}")
    return "\n".join(lines)


def importances(study: Study) -> dict[str, float]:
    """The share of the variance that each parameter explains; {} with too few trials."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = {trial.value for trial in done}
    varied = study.user_attrs["plan"]["space"]
    if len(values) < 4 or len(varied) < 2:
        return {}
    return get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )


def page(study: Study, plan: Plan) -> str:
    """History of the best value, parallel coordinates, slices; "" before the first result."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return ""
    keys = list(plan.distributions())
    figures = [plots.plot_optimization_history(study, target_name=plan.minimize)]
    if len(keys) > 1:
        figures.append(plots.plot_parallel_coordinate(study, target_name=plan.minimize))
    figures.append(plots.plot_slice(study, target_name=plan.minimize))
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0)
        for index, figure in enumerate(figures)
    ]
    title = html.escape(study.study_name)
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
    return f"{head}<h1>{title}</h1><pre>{html.escape(table(study, plan))}</pre>{''.join(parts)}"

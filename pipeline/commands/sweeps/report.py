"""What a sweep has found: a table for the terminal, and a page with Optuna's plots."""

import html

import optuna
import pandas as pd
from optuna import visualization as plots
from optuna.importance import get_param_importances
from optuna.study import Study
from optuna.trial import TrialState

from pipeline.commands.sweeps.experiment import trial_name
from pipeline.commands.sweeps.study import REASON, SAME_AS, Plan

SHOWN = 20  # the best trials in the terminal


def table(study: Study, plan: Plan) -> str:
    """The trials, best first; how many there are of each state; what failed, and why."""
    trials = {trial_name(study.study_name, each.number): each for each in study.trials}
    states = pd.Series([trial.state.name.lower() for trial in trials.values()]).value_counts()
    lines = [", ".join(f"{count} {state}" for state, count in states.items())]
    rows = {
        name: {
            plan.minimize: trial.value, **trial.params,
            "worker": trial.user_attrs.get("worker", ""),
        }
        for name, trial in trials.items()
        if trial.state == TrialState.COMPLETE and SAME_AS not in trial.user_attrs
    }  # fmt: skip
    if rows:
        frame = pd.DataFrame.from_dict(rows, orient="index").sort_values(plan.minimize)
        lines.append(frame.head(SHOWN).to_string(float_format="{:.5g}".format))
    for name, trial in trials.items():
        if trial.state == TrialState.FAIL:
            reason = trial.user_attrs.get(REASON, "its worker ended; `sweep work` tries again")
            lines.append(f"failed: {name}: {reason}")
    if (
        len(families := {each.user_attrs["cpu"] for each in study.trials if each.value is not None})
        > 1
    ):
        lines.append(f"note: {' and '.join(sorted(families))} differ by rounding")
    if weights := importances(study, plan):
        listed = ", ".join(f"{key} {weight:.0%}" for key, weight in weights.items())
        lines.append(f"importance of each parameter (fANOVA): {listed}")
    return "\n".join(lines)


def importances(study: Study, plan: Plan) -> dict[str, float]:
    """The share of the variance that each parameter explains; {} with too few trials."""
    values = {trial.value for trial in study.trials} - {None}
    if len(values) < 4 or len(plan.space) < 2:
        return {}
    return get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )


def page(study: Study, plan: Plan) -> str:
    """History of the best value, parallel coordinates, slices; "" before the first result."""
    if all(trial.state != TrialState.COMPLETE for trial in study.trials):
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

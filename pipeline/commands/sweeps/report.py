"""What a sweep has found: a table for the terminal, and a page with Optuna's plots."""

import html

import pandas as pd
from optuna import visualization as plots
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import TrialState

from pipeline.commands.sweeps.experiment import trial_name
from pipeline.commands.sweeps.study import ERROR, REASON, SAME_AS, Plan

SHOWN = 20  # the best trials in the terminal


def table(study: Study, plan: Plan) -> str:
    """How many trials there are of each state, the best, what failed and why."""
    trials = study.trials_dataframe(("number", "state", "value", "params", "user_attrs"))
    trials.columns = trials.columns.str.removeprefix("params_").str.removeprefix("user_attrs_")
    trials.index = pd.Index(trial_name(study.study_name, each) for each in trials["number"])
    shown = ["value", *plan.space, "worker"]
    trials = trials.reindex(columns=["state", *shown, "cpu", REASON, ERROR, SAME_AS])
    counts = trials["state"].str.lower().value_counts()
    lines = [", ".join(f"{count} {state}" for state, count in counts.items())]
    done = trials[(trials["state"] == "COMPLETE") & trials[SAME_AS].isna()]
    if len(done):
        best = done.sort_values("value").head(SHOWN)[shown].rename(columns={"value": plan.minimize})
        lines.append(best.convert_dtypes().to_string(float_format="{:.6g}".format))
    failed = trials.loc[trials["state"] == "FAIL", REASON]
    lines += [f"failed: {name}: {text}" for name, text in failed.items()]
    waiting = trials.loc[trials["state"] == "WAITING", ERROR].dropna()
    lines += [f"tried again by `sweep work`: {name}: {text}" for name, text in waiting.items()]
    if len(cpus := done["cpu"].unique()) > 1:
        lines.append(f"note: results of {' and '.join(cpus)} differ by rounding")
    if weights := importances(study, plan):
        listed = ", ".join(f"{key} {weight:.0%}" for key, weight in weights.items())
        lines.append(f"importance of each parameter (fANOVA): {listed}")
    return "\n".join(lines)


def importances(study: Study, plan: Plan) -> dict[str, float]:
    """The share of the variance that each parameter explains; {} with too few trials."""
    values = {trial.value for trial in study.trials} - {None}
    if len(values) < 4 or len(plan.space) < 2:
        return {}
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))


def page(study: Study, plan: Plan) -> str:
    """History of the best value, parallel coordinates, slices; "" before the first result."""
    if not study.get_trials(states=(TrialState.COMPLETE,)):
        return ""
    drawn = (plots.plot_optimization_history, plots.plot_parallel_coordinate, plots.plot_slice)
    figures = [plot(study, target_name=plan.minimize) for plot in drawn]
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0)
        for index, figure in enumerate(figures)
    ]
    title = html.escape(study.study_name)
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
    return f"{head}<h1>{title}</h1><pre>{html.escape(table(study, plan))}</pre>{''.join(parts)}"

"""A recommendation in plain words, by rules that are printed with it."""

from __future__ import annotations

import pandas as pd

from vidpipe.study.permutations import smallest_p
from vidpipe.study.statistics import ALPHA, best_of

MARGIN = 0.05
"""What a candidate may lie behind the best, where the tests cannot tell them apart."""
EQUAL = 0.02
"""Costs that differ by less, relative to the larger, are the same."""
APART = 0.25
"""Training accuracy that a final training may lack beside the trial that it repeats."""
RULES = (
    "Rules: candidates are the best in {score} and all whose adjusted p against it is above "
    f"{ALPHA:g} and that lie at most {100 * MARGIN:g} points behind. Recommended is the candidate that "
    "is cheapest at "
    "inference (GFLOPs of a view, then new parameters), of equals the one cheapest to train, then the "
    f"most accurate; costs within {100 * EQUAL:g} % are equal. Where there are too few groups for any p "
    f"to reach {ALPHA:g}, nothing is recommended, and the best is named."
)


def recommendation(
    accuracy: pd.DataFrame,
    best: pd.DataFrame,
    reference: pd.DataFrame,
    orders: pd.DataFrame,
    groups: int,
    score: str = "top1",
) -> list[str]:
    """Sentences, the first of which is the recommendation; RULES, of a `score`, says how it is made.

    Args:
        accuracy: `statistics.accuracies` with the costs gflops, new_at_inference_m, training_gflops.
        best, reference: `statistics.against` the best and the reference.
        orders: method, shuffled_drop and p; empty where the use of time was not measured.
        groups: of the tested clips.
        score: column that methods are compared by.
    """
    known = accuracy.dropna(subset=[score]).set_index("method")
    top, scores = best_of(accuracy, score), known[score]
    versus = best.set_index("method")
    if len(known) > 1 and smallest_p(groups) > ALPHA:
        first = (
            f"{groups} groups are too few to recommend anything. {top} is the most accurate here, "
            f"with {_percent(scores[top])}; that it is better than another is not shown."
        )
        return [first, *_order(top, orders)]
    candidates = [top] + [
        name
        for name in known.index
        if name != top and not _significant(versus, name) and -versus.difference[name] <= MARGIN
    ]
    chosen = _cheapest(known, candidates, score)
    accurate = "the most accurate" if chosen == top else f"within noise of the best ({top})"
    cheap = ", and the cheapest of the candidates at inference" if len(candidates) > 1 else ""
    found = [
        f"{chosen}: {accurate} with {_percent(scores[chosen])} "
        f"({_percent(known[f'{score}_low'][chosen])} to {_percent(known[f'{score}_high'][chosen])}, "
        f"{groups} groups), "
        f"{known.gflops[chosen]:.3g} GFLOPs a view{cheap}."
    ]
    for name in sorted(candidates, key=lambda n: -scores[n]):
        if name != chosen:
            found.append(f"{name} is within noise of the best, {_costs(known, name, chosen)}.")
    for name in sorted(set(known.index) - set(candidates), key=lambda n: -scores[n]):
        sure = _significant(versus, name)
        noise = "" if sure else f", which {groups} groups do not tell from noise"
        found.append(
            f"{name} is {-100 * versus.difference[name]:.0f} points behind {top}{noise} "
            f"(p {versus.p_adjusted[name]:.2g})."
        )
    found += _reference(reference, chosen)
    blind = known.index[known.p_chance > ALPHA].tolist()
    found += [f"{name} is not shown to be better than chance." for name in blind]
    return found + _order(chosen, orders)


def undertrained(choices: pd.DataFrame, reference: str, score: str) -> list[str]:
    """A sentence for each row whose chosen settings validate below the reference's in every fold.

    A method that starts as the frozen model with a linear head can reach what the probe reaches. Where
    it does not, the budget or the space of rates is what its row shows.

    Args:
        choices: columns method, fold, fraction and `score`, the validation score of the chosen setting.
        reference: row to compare with.
    """
    known = choices.dropna(subset=[score])
    mean = known.pivot_table(index=["fold", "fraction"], columns="method", values=score, sort=False)
    if reference not in mean:
        return []
    found = []
    for name in dict.fromkeys(known.method):
        both = mean[[name, reference]].dropna() if name != reference else mean.iloc[:0]
        if len(both) and (both[name] < both[reference]).all():
            own, other = (_percent(float(both[n].mean())) for n in (name, reference))
            found.append(
                f"{name} may be undertrained: where it was tuned, it stays below {reference} in every "
                f"fold ({own} against {other} on average); give it more epochs, trials or another space "
                "of rates before its row is believed"
            )
    return found


def fell_apart(cells: pd.DataFrame) -> list[str]:
    """A sentence for each final training that ends far below the trial of the same settings, on the
    training clips of either: its rate holds or fails by chance, which one seed does not show.

    Args:
        cells: columns method, kind, fold, fraction, seed, trial, state and train_top1 (at the end).
    """
    known = cells[cells.train_top1.notna() & (cells.state == "finished")]
    trials, finals = known[known.kind == "trial"], known[known.kind == "final"]
    of_trial = trials.groupby(["method", "fold", "trial"]).train_top1.max().to_dict()
    found = []
    for row in finals.to_dict("records"):
        before = of_trial.get((row["method"], row["fold"], row["trial"]))
        if before is not None and before - row["train_top1"] > APART:
            part = f"fold {row['fold']}" + (
                "" if row["fraction"] == 1 else f" at {row['fraction']:g}"
            )
            where = f"{row['method']}, {part}, seed {row['seed']}"
            found.append(
                f"{where} fell apart: it ends with {_percent(row['train_top1'])} of its own training "
                f"clips right, the trial of the same settings with {_percent(float(before))}; its rate "
                "holds or fails by chance: more seeds show how often, lower rates mend it"
            )
    return found


def _significant(table: pd.DataFrame, name: str) -> bool:
    return bool(name in table.index and table.significant[name])


def _cheapest(known: pd.DataFrame, candidates: list[str], score: str) -> str:
    """By the rules; each criterion keeps those that are equal to the least."""
    left = candidates
    for column in ("gflops", "new_at_inference_m", "training_gflops"):
        least = min(known[column][name] for name in left)
        left = [n for n in left if known[column][n] - least <= EQUAL * abs(known[column][n])]
    return max(left, key=lambda name: known[score][name])


def _costs(known: pd.DataFrame, name: str, chosen: str) -> str:
    """How the costs of `name` compare with those of `chosen`."""
    parts = []
    for column, what in (("gflops", "at inference"), ("training_gflops", "to train")):
        own, other = float(known[column][name]), float(known[column][chosen])
        if abs(own - other) <= EQUAL * other:
            parts.append(f"costs the same {what}")
        elif other == 0:  # zero_shot, which is not trained
            parts.append(f"costs something {what}, which {chosen} does not")
        else:
            parts.append(f"costs {own / other:.2g} times as much {what}")
    return " and ".join(parts)


def _reference(table: pd.DataFrame, chosen: str) -> list[str]:
    own = table[table.method == chosen]
    if own.empty:
        return []
    row = own.iloc[0]
    sure = "" if row.significant else ", which is not significant"
    better = "above" if row.difference >= 0 else "below"
    return [
        f"{chosen} is {abs(100 * row.difference):.0f} points {better} the reference "
        f"{row.reference} (p {row.p_adjusted:.2g} by Holm{sure})."
    ]


def _order(method: str, orders: pd.DataFrame) -> list[str]:
    if orders.empty or method not in set(orders.method):
        return []
    row = orders[orders.method == method].iloc[0]
    sure = row.p <= ALPHA
    claim = (
        "The order of frames matters" if sure else "That the order of frames matters is not shown"
    )
    lost = f"{100 * row.shuffled_drop:.0f} points"
    return [f"{claim}: {method} loses {lost} without it (p {row.p:.2g})."]


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.1f} %"

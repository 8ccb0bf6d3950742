"""The first lines of a report: what a run found, in sentences with numbers.

Sentences are `Markup`: whatever a name holds, it is escaped by `Markup.format`.
"""

from __future__ import annotations

from collections import Counter
from statistics import geometric_mean, median

from markupsafe import Markup

from raysnap.config.choices import Role
from raysnap.humanize import bytes_text, plural, ratio_text, score_text, seconds_text, share_text
from raysnap.runs.json_fields import number
from raysnap.runs.questions import Question, short_dataset
from raysnap.runs.run import Run
from raysnap.runs.search_rows import RankingRow
from raysnap.runs.store_contents import Holdings
from raysnap.runs.sweep_results import Comparison, Sweep, point_text, sweep_of, training_s, value_text
from raysnap.runs.trial_rows import TrialRow

MAX_QUESTIONS_TOLD = 3
MAX_COMPARISONS_TOLD = 4


def headline(run: Run) -> Markup:
    """The one thing to take away from the run; names in it are `<span class="name">`."""
    sweep = sweep_of(run)
    if sweep and sweep.best:
        chosen = point_text(sweep.best, sweep.parameters) or sweep.best.name
        return Markup("Best of {}: {}").format(plural(len(sweep.trials), "trial"), _name(chosen))
    if len(run.questions) == 1:
        winner, asked = best_of(run.questions[0]), _name(short_dataset(run.questions[0].dataset))
        origin = run.trial_of.get(winner.snapshot) if winner else None
        if winner and origin and origin.dataset and origin.role != Role.BASE:
            return Markup("Start from {} for {}").format(_name(short_dataset(origin.dataset)), asked)
        if winner:
            return Markup("The best start for {} is {}").format(asked, _name(winner.name))
    if run.questions:
        num_methods = len({one.method for question in run.questions for one in question.methods})
        num_datasets = len({question.dataset for question in run.questions})
        return Markup("{} timed on {}").format(plural(num_methods, "search method"), plural(num_datasets, "dataset"))
    done = [trial for trial in run.finetunes if trial.is_done]
    num_datasets = len({trial.dataset for trial in done})
    if done:
        return Markup("{} from {}").format(plural(len(done), "snapshot"), plural(num_datasets, "dataset"))
    synthetic = [trial for trial in run.done_trials if trial.role == Role.SYNTHETIC]
    if synthetic:
        return Markup("{}").format(plural(len(synthetic), "synthetic snapshot"))
    return Markup("No search of this run finished" if run.searches else "No trial of this run finished")


def _name(name: str) -> Markup:
    return Markup('<span class="name">{}</span>').format(name)


def sentences(run: Run, holdings: Holdings) -> list[Markup]:
    """What was trained, which snapshot is the best start, which method is the fastest, what the store saved."""
    told = []
    sweep = sweep_of(run)
    if sweep:
        told += sweep_sentences(sweep)
    if run.finetunes or run.num_unfinished:
        told.append(_training(run))
    first: dict[str, Question] = {}
    for question in run.questions:
        first.setdefault(question.dataset, question)
    told += [_winner(question, run) for question in list(first.values())[:MAX_QUESTIONS_TOLD]]
    if len(run.questions) > MAX_QUESTIONS_TOLD:
        told += _overall_speed(run)
    else:
        told += [_speed(question, is_only=len(run.questions) == 1) for question in run.questions]
    told.append(_savings(run, holdings))
    return [sentence for sentence in told if sentence]


def key_figures(run: Run, holdings: Holdings) -> list[tuple[str, str]]:
    """Up to four (figure, caption) to see before reading."""
    figures = []
    sweep = sweep_of(run)
    if run.finetunes or run.num_unfinished:
        num_done = sum(trial.is_done for trial in run.finetunes)
        num_stopped = sum(not trial.has_failed for trial in run.finetunes) - num_done
        stopped = f", {num_stopped:,} stopped by the scheduler or the clock" if num_stopped else ""
        num_wanted = len(run.finetunes) + run.num_unfinished
        figures.append((f"{num_done:,}", f"of {plural(num_wanted, 'fine-tune')} done{stopped}"))
    best = best_of(run.questions[0]) if len(run.questions) == 1 else None
    if best and best.score is not None:
        figures.append((score_text(best.score), f"best {run.questions[0].proxy} score"))
    elif sweep and sweep.best:
        best_text = sweep.objective_text(sweep.best.objective)
        figures.append((best_text, f"best {sweep.metric_name}"))
        known_s = [seconds for trial in sweep.trials if (seconds := training_s(trial)) is not None]
        figures.append((seconds_text(sum(known_s)), f"training time of {plural(len(known_s), 'model')} in all"))
    elif not run.questions:
        accuracies = [trial.val_accuracy for trial in run.finetunes if trial.val_accuracy is not None]
        figures.extend([(score_text(max(accuracies)), "best val accuracy")] if accuracies else [])
    gains = [(question.speed_up(question.fastest), question) for question in run.questions if len(question.methods) > 1]
    if gains:
        gain, question = max(gains, key=lambda one: one[0])
        figures.append((ratio_text(gain), f"faster: {question.fastest.method} than {question.slowest.method}"))
    if holdings.saved_share is not None:
        figures.append((share_text(max(0.0, holdings.saved_share)), "of the store's bytes saved"))
    return figures


def sweep_sentences(sweep: Sweep) -> list[Markup]:
    """Which trial is the best, and what each parameter with few values is worth."""
    best = sweep.best
    if best is None:
        return [Markup("No trial of the sweep finished, so there is no best one.")]
    test = best.metrics.get("test_accuracy")
    text = Markup("The best trial, <b class='name'>{}</b>, reaches {} <b>{}</b>{}").format(
        best.name,
        sweep.metric_name,
        sweep.objective_text(best.objective),
        f" in epoch {best.metrics['best_epoch']:.0f}" if "best_epoch" in best.metrics else "",
    )
    told = [text + (Markup(" and test accuracy <b>{}</b>.").format(score_text(test)) if test is not None else ".")]
    sure = [one for one in sweep.comparisons if one.num_pairs > 1]
    return told + [comparison_sentence(one, sweep) for one in sure[:MAX_COMPARISONS_TOLD]]


def comparison_sentence(one: Comparison, sweep: Sweep) -> Markup:
    """What one value of a parameter is worth against another, and from how many pairs that is known."""
    pair = Markup("<b>{}</b>: <b class='name'>{}</b>").format(one.parameter.label, value_text(one.better))
    other = _name(value_text(one.worse))
    metric = sweep.metric_name
    if one.gain == 0:
        text = pair + Markup(" and {} do equally well by {}").format(other, metric)
    elif one.num_pairs == 1:
        text = pair + Markup(" beats {} by {:.3f} {} in the one pair that differs in nothing else").format(
            other, one.gain, metric
        )
    elif one.num_pairs:
        text = pair + Markup(" beats {} in {} of {}, by {:.3f} {} on average{}").format(
            other,
            one.num_better,
            f"{plural(one.num_pairs, 'pair')} that differ in nothing else",
            one.gain,
            metric,
            f" ({one.least_gain:+.3f} to {one.most_gain:+.3f})" if one.most_gain > one.least_gain else "",
        )
    else:
        text = pair + Markup(
            " has a median {:.3f} {} better than {}, among trials that differ in other things, too"
        ).format(one.gain, metric, other)
    if one.time_ratio is not None:
        text += Markup("; its training takes {:.2f}× as long").format(one.time_ratio)
    return text + "."


def best_of(question: Question) -> RankingRow | None:
    """The snapshot that the reference method ranks first."""
    ranking = question.reference.median_run.ranking
    return min(ranking, key=lambda one: one.rank) if ranking else None


def origin_text(trial: TrialRow | None) -> Markup:
    """Where a snapshot comes from: its dataset and its retrain index."""
    if trial is None:
        return Markup("")
    if trial.role == Role.BASE:
        return Markup("the base snapshot")
    return Markup("fine-tuned on {}, r = {}").format(
        short_dataset(trial.dataset), "?" if trial.retrain_index is None else trial.retrain_index
    )


def ranking_matches(question: Question, one: str, other: str) -> bool | None:
    """Whether two methods rank all candidates alike; `None` where one of them did not run."""
    runs = [question.method(one), question.method(other)]
    if None in runs:
        return None
    first, second = ([ranked.snapshot for ranked in run.median_run.ranking] for run in runs)
    return first == second


def largest_difference(question: Question, one: str, other: str) -> float | None:
    """The largest difference between the scores two methods give to one candidate."""
    runs = [question.method(one), question.method(other)]
    if None in runs:
        return None
    first, second = (run.median_run.scores for run in runs)
    return max((abs(first[key] - second[key]) for key in first.keys() & second.keys()), default=None)


def regret(question: Question, method: str) -> float | None:
    """How much lower the reference scores this method's winner than its own; 0 is the same or as good a winner."""
    scores = question.reference.median_run.scores
    ranking = question.method(method).median_run.ranking
    if not scores or not ranking:
        return None
    found = scores.get(min(ranking, key=lambda one: one.rank).snapshot)
    return None if found is None else max(scores.values()) - found


def _training(run: Run) -> Markup:
    done = [trial for trial in run.finetunes if trial.is_done]
    architectures = sorted({trial.architecture for trial in done})
    wall_s = number(run.env.get("wall_s"))
    if done:
        text = Markup("<b>{}</b> of <b>{}</b> {} fine-tuned on {}").format(
            plural(len(done), "snapshot"),
            ", ".join(architectures) if len(architectures) <= 3 else plural(len(architectures), "architecture"),
            "was" if len(done) == 1 else "were",
            plural(len({trial.dataset for trial in done}), "dataset"),
        )
    else:
        text = Markup("No fine-tune finished")
    text += Markup(" in {} all told").format(seconds_text(wall_s)) if wall_s else ""
    counts = Counter(trial.status for trial in run.trials if not trial.is_done)
    troubles = [f"{plural(count, 'trial')} {status}" for status, count in counts.items()]
    if run.num_unfinished:
        troubles.append(f"{plural(run.num_unfinished, 'planned trial has', 'planned trials have')} not finished")
    text += Markup("; {}.").format(" and ".join(troubles)) if troubles else Markup(".")
    if run.training_share is not None:
        overhead_s = median(trial.overhead_s for trial in run.timed_trials)
        text += Markup(" <b>{}</b> of the fine-tunes' wall time was training; around each, {} went by besides.").format(
            share_text(run.training_share), seconds_text(overhead_s)
        )
    return text


def _winner(question: Question, run: Run) -> Markup:
    best = best_of(question)
    if best is None:
        return Markup("The searches for <b>{}</b> ranked nothing.").format(short_dataset(question.dataset))
    ranking = question.reference.median_run.ranking
    trial = run.trial_of.get(best.snapshot)
    text = Markup("For <b class='name'>{}</b> the best start of {} is <b class='name'>{}</b>{}: {} {}{}").format(
        short_dataset(question.dataset),
        plural(len(ranking), "candidate"),
        best.name,
        Markup(", {}").format(origin_text(trial)) if trial else "",
        question.proxy,
        Markup("score <b>{}</b>").format(score_text(best.score)),
        f" on {best.num_test:,} held-out items" if best.num_test else "",
    )
    num_tied = sum(one.is_tied for one in ranking if one.snapshot != best.snapshot)
    rivals = [one.score for one in ranking if one.snapshot != best.snapshot and one.score is not None]
    if num_tied:
        return text + f"; {plural(num_tied, 'other is', 'others are')} tied with it."
    if rivals and best.score is not None:
        return text + f", {best.score - max(rivals):.3f} ahead of the next."
    return text + "."


def _speed(question: Question, *, is_only: bool) -> Markup:
    asked = Markup("") if is_only else Markup("For <b class='name'>{}</b>: ").format(question.title)
    fastest, slowest = question.fastest, question.slowest
    repeats = len(fastest.searches)
    is_alone = fastest is slowest or len(question.methods) < 2
    how = f"median of {plural(repeats, 'run')}" if repeats > 1 else "one run" if is_alone else "one run each"
    if is_alone:
        return asked + Markup("{} answers in <b>{}</b> ({}).").format(
            fastest.method, seconds_text(fastest.median_s), how
        )
    text = asked + Markup(
        "{} fastest method, <b>{}</b>, answers in <b>{}</b>, <b>{}</b> faster than {} ({}), {}"
    ).format(
        "The" if is_only else "the",
        fastest.method,
        seconds_text(fastest.median_s),
        ratio_text(question.speed_up(fastest)),
        slowest.method,
        seconds_text(slowest.median_s),
        how,
    )
    lost = regret(question, fastest.method)
    if lost is None or fastest is question.reference:
        return text + "."
    same = "and its winner is as good." if lost <= 1e-9 else f"but its winner scores {lost:.3f} lower."
    return text + f", {same}"


def _overall_speed(run: Run) -> list[Markup]:
    """Each method's speed-up over all questions of a benchmark; noisy times count like others and are named."""
    gains: dict[tuple[str, str], list[float]] = {}
    for question in run.questions:
        for one in question.methods:
            if one is not question.slowest and question.speed_up(one) > 0:
                gains.setdefault((one.method, question.slowest.method), []).append(question.speed_up(one))
    told = [
        Markup("Over {}, <b>{}</b> is <b>{}</b> faster than {}{}.").format(
            plural(len(found), "question"),
            method,
            ratio_text(geometric_mean(found)),
            against,
            f" (geometric mean; {ratio_text(min(found))} to {ratio_text(max(found))})" if len(found) > 1 else "",
        )
        for (method, against), found in sorted(gains.items(), key=lambda item: -geometric_mean(item[1]))
    ]
    num_noisy = sum(one.is_noisy for question in run.questions for one in question.methods)
    num_all = sum(len(question.methods) for question in run.questions)
    if num_noisy:
        told.append(Markup("{} of {} timings are noisy; each is marked and says why.").format(num_noisy, num_all))
    return told


def _savings(run: Run, holdings: Holdings) -> Markup:
    if holdings.bytes_if_copied:
        text = Markup("The store keeps {} in <b>{}</b>; whole copies would take {}, so ").format(
            plural(holdings.num_in_store, "snapshot"),
            bytes_text(holdings.bytes_on_disk),
            bytes_text(holdings.bytes_if_copied),
        )
        if holdings.saved_share <= 0:
            return text + "sharing blocks saves nothing here."
        return text + Markup("sharing blocks saves <b>{}</b>.").format(share_text(holdings.saved_share))
    added, copied = recorded_bytes(run)
    if not copied:
        return Markup("")
    return Markup("The run's snapshots added <b>{}</b> to the store where whole copies would take {}.").format(
        bytes_text(added), bytes_text(copied)
    )


def recorded_bytes(run: Run) -> tuple[float, float]:
    """(bytes that the run's snapshots added, bytes of whole copies), as its own rows recorded them."""
    rows = [trial for trial in run.done_trials if trial.new_bytes is not None and trial.snapshot_bytes is not None]
    return sum(trial.new_bytes for trial in rows), sum(trial.snapshot_bytes for trial in rows)

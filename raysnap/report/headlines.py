"""The first lines of a report: what a run found, in sentences with numbers.

Sentences are `Markup`: names from a run are escaped by `Markup.format`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import geometric_mean, median

from markupsafe import Markup

from raysnap.config.choices import Role
from raysnap.humanize import bytes_text, is_known, plural, ratio_text, score_text, seconds_text, share_text
from raysnap.report.finetune_section import finetune_headline, finetune_sentences
from raysnap.runs.json_fields import number
from raysnap.runs.method_agreement import best_of, regret
from raysnap.runs.questions import Question, short_dataset
from raysnap.runs.run import Run
from raysnap.runs.search_rows import RankingRow
from raysnap.runs.store_contents import StoreContents
from raysnap.runs.sweep_results import Comparison, Sweep, objective_of, point_text, sweep_of, training_s
from raysnap.runs.trial_rows import TrialRow

MAX_FIGURES = 4
MAX_QUESTIONS = 3
MAX_COMPARISONS = 4
SAME_SCORE = 1e-9
SAME_TIME = 0.05  # of the logarithm of a ratio of two times


def headline(run: Run) -> Markup:
    """Return the main result of the run; names in it are `<span class="name">`."""
    if run.shortlist is not None:
        return finetune_headline(run)
    sweep = sweep_of(run)
    if sweep and sweep.best:
        chosen = point_text(sweep.best, sweep.parameters) or sweep.best.name
        return Markup("Best of {}: {}").format(plural(len(sweep.trials), "trial"), _name(chosen))
    if len(run.questions) == 1:
        winner, asked = best_of(run.questions[0]), _name(short_dataset(run.questions[0].dataset))
        num_tied = num_tied_with(run.questions[0])
        if winner and num_tied:
            return Markup("{} is among the {} best starts for {}: they are tied").format(
                _name(winner.name), num_tied + 1, asked
            )
        origin = run.trial_of.get(winner.snapshot) if winner else None
        if winner and origin and origin.dataset and origin.role != Role.BASE:
            return Markup("Start from {} for {}").format(_name(short_dataset(origin.dataset)), asked)
        if winner:
            return Markup("The best start for {} is {}").format(asked, _name(winner.name))
    if run.questions:
        num_methods = len({runs.method for question in run.questions for runs in question.methods})
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


def num_tied_with(question: Question) -> int:
    """Return how many candidates are statistically tied with the first."""
    best = best_of(question)
    ranking = question.reference.median_run.ranking
    return sum(ranked.is_tied for ranked in ranking if best is not None and ranked.snapshot != best.snapshot)


def sentences(run: Run, contents: StoreContents) -> list[Markup]:
    """Say what was trained, which snapshot is the best start, which method is fastest, what the store saves."""
    found = finetune_sentences(run, run.shortlist) if run.shortlist is not None else []
    sweep = sweep_of(run)
    if sweep and run.shortlist is None:
        found += sweep_sentences(sweep)
    first_of: dict[str, Question] = {}
    for question in run.questions:
        first_of.setdefault(question.dataset, question)
    found += [_winner(question, run) for question in list(first_of.values())[:MAX_QUESTIONS]]
    if run.finetunes or run.num_unfinished:
        found.append(_training(run))
    if len(run.questions) > MAX_QUESTIONS:
        found += _overall_speed(run)
    elif run.shortlist is None:  # a finetune's search is one of its stages
        found += [_speed(question, is_only=len(run.questions) == 1) for question in run.questions]
    found.append(_savings(run, contents))
    return [sentence for sentence in found if sentence]


def key_figures(run: Run, contents: StoreContents) -> list[tuple[str, str]]:
    """Return up to `MAX_FIGURES` (figure, caption), the most important first."""
    figures = []
    sweep = sweep_of(run)
    if run.finetunes or run.num_unfinished:
        num_done = sum(trial.is_done for trial in run.finetunes)
        num_stopped = sum(not trial.has_failed for trial in run.finetunes) - num_done
        stopped = f", {num_stopped:,} stopped early" if num_stopped else ""
        num_planned = len(run.finetunes) + run.num_unfinished
        figures.append((f"{num_done:,}", f"of {plural(num_planned, 'fine-tune')} done{stopped}"))
    best = best_of(run.questions[0]) if len(run.questions) == 1 and run.shortlist is None else None
    if best and best.score is not None:
        figures.append((score_text(best.score), f"best {run.questions[0].proxy} score"))
    elif sweep and sweep.best:
        best_text = sweep.objective_text(objective_of(sweep.best))
        figures.append((best_text, f"best {sweep.metric_name}"))
        known_s = [seconds for trial in sweep.trials if (seconds := training_s(trial)) is not None]
        figures.append((seconds_text(sum(known_s)), f"total training time of {plural(len(known_s), 'model')}"))
    elif not run.questions:
        accuracies = [trial.val_accuracy for trial in run.finetunes if trial.val_accuracy is not None]
        figures.extend([(score_text(max(accuracies)), "best val accuracy")] if accuracies else [])
    gains = [(question.speed_up(question.fastest), question) for question in run.questions if len(question.methods) > 1]
    if gains:
        gain, question = max(gains, key=lambda pair: pair[0])
    if gains and math.log(gain) >= SAME_TIME:
        figures.append((ratio_text(gain), f"speed-up of {question.fastest.method} over {question.slowest.method}"))
    if contents.saved_share is not None:
        figures.append((share_text(max(0.0, contents.saved_share)), "of disk space saved by sharing blocks"))
    return figures[:MAX_FIGURES]


def sweep_sentences(sweep: Sweep) -> list[Markup]:
    """Say which trial is the best, and how the values of each parameter compare."""
    best = sweep.best
    if best is None:
        return [Markup("No trial of the sweep finished, so there is no best one.")]
    test = best.metrics.get("test_accuracy")
    text = Markup("The best trial, <b class='name'>{}</b>, reaches {} <b>{}</b>{}").format(
        best.name,
        sweep.metric_name,
        sweep.objective_text(objective_of(best)),
        f" in epoch {best.metrics['best_epoch']:.0f}" if "best_epoch" in best.metrics else "",
    )
    text += Markup(" and test accuracy <b>{}</b>.").format(score_text(test)) if test is not None else "."
    paired = [comparison for comparison in sweep.comparisons if comparison.num_pairs > 1]
    return [text, *(comparison_sentence(comparison, sweep) for comparison in paired[:MAX_COMPARISONS])]


def comparison_sentence(comparison: Comparison, sweep: Sweep) -> Markup:
    """Say how two values of a parameter compare, and on how many pairs of trials that is based."""
    subject = Markup("<b>{}</b>: <b class='name'>{}</b>").format(comparison.parameter.label, comparison.better)
    other, metric = _name(comparison.worse), sweep.metric_name
    if comparison.gain == 0:
        text = subject + Markup(" and {} do equally well by {}").format(other, metric)
    elif comparison.num_pairs == 1:
        text = subject + Markup(" beats {} by {:.3f} {} in the only pair of otherwise identical trials").format(
            other, comparison.gain, metric
        )
    elif comparison.num_pairs:
        least, most = f"{comparison.least_gain:+.3f}", f"{comparison.most_gain:+.3f}"
        text = subject + Markup(
            " beats {} in {} of {} of otherwise identical trials, by {:.3f} {} on average{}"
        ).format(
            other,
            comparison.num_better,
            plural(comparison.num_pairs, "pair"),
            comparison.gain,
            metric,
            f" ({least} to {most})" if most != least else "",
        )
    else:
        text = subject + Markup(
            " has a median {:.3f} {} better than {}, but these trials also differ in other ways"
        ).format(comparison.gain, metric, other)
    if comparison.time_ratio is not None:
        text += Markup("; its training takes {:.2f}× as long").format(comparison.time_ratio)
    return text + "."


def origin_text(trial: TrialRow) -> str:
    """Say where a snapshot comes from: its dataset, and how many blocks were retrained."""
    if trial.role == Role.BASE:
        return "the base snapshot"
    depth = ""
    if trial.retrain_index is not None:
        depth = f" with {plural(trial.retrain_index, 'retrained block')}" if trial.retrain_index else " (head only)"
    return f"fine-tuned on {short_dataset(trial.dataset)}{depth}"


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
    text += Markup("; the run took {}").format(seconds_text(wall_s)) if wall_s else ""
    counts = Counter(trial.status for trial in run.trials if not trial.is_done)
    troubles = [f"{plural(count, 'trial')} {status}" for status, count in counts.items()]
    if run.num_unfinished:
        troubles.append(f"{plural(run.num_unfinished, 'planned trial has', 'planned trials have')} not finished")
    text += Markup("; {}.").format(" and ".join(troubles)) if troubles else Markup(".")
    if run.training_share is not None:
        overhead_s = median(overhead_s for _, overhead_s in run.finetune_times_s)
        text += Markup(" Training was <b>{}</b> of the fine-tunes' wall time; each had {} of overhead.").format(
            share_text(run.training_share), seconds_text(overhead_s)
        )
    return text


def _winner(question: Question, run: Run) -> Markup:
    best = best_of(question)
    if best is None:
        return Markup("The searches for <b>{}</b> ranked nothing.").format(short_dataset(question.dataset))
    ranking = question.reference.median_run.ranking
    trial = run.trial_of.get(best.snapshot)
    text = Markup(
        "For <b class='name'>{}</b>, the best of {} is <b class='name'>{}</b>{}: {} score <b>{}</b>{}"
    ).format(
        short_dataset(question.dataset),
        plural(len(ranking), "candidate"),
        best.name,
        f", {origin_text(trial)}" if trial else "",
        question.proxy,
        score_text(best.score),
        scored_text(best),
    )
    num_tied = num_tied_with(question)
    if num_tied:
        return text + f"; {plural(num_tied, 'other is', 'others are')} tied with it."
    return text + _lead(best, ranking)


def scored_text(line: RankingRow) -> str:
    """Say how certain a score is: its interval, and the items that it rests on."""
    num_items = line.num_scored or line.num_test
    interval = f" ({score_text(line.low)} to {score_text(line.high)})" if is_known(line.low) else ""
    return f"{interval} on {num_items:,} held-out items" if num_items else interval


def _lead(best: RankingRow, ranking: Sequence[RankingRow]) -> str:
    """Say how far ahead the first is of the next that was scored on the same items; of others nothing is known."""
    same = [line.score for line in ranking if line.snapshot != best.snapshot and line.rung == best.rung]
    others = [score for score in same if score is not None]
    if others and best.score is not None:
        return f", {best.score - max(others):.3f} ahead of the next."
    return ". All others were dropped on fewer items." if len(ranking) > 1 else "."


def _speed(question: Question, *, is_only: bool) -> Markup:
    prefix = Markup("") if is_only else Markup("For <b class='name'>{}</b>: ").format(question.title)
    fastest, slowest = question.fastest, question.slowest
    repeats = len(fastest.searches)
    is_alone = fastest is slowest or len(question.methods) < 2
    how = f"median of {plural(repeats, 'run')}" if repeats > 1 else "one run" if is_alone else "one run each"
    if is_alone:
        return prefix + Markup("{} takes <b>{}</b> ({}).").format(fastest.method, seconds_text(fastest.median_s), how)
    text = prefix + Markup("{} fastest search method, <b>{}</b>, takes <b>{}</b> ({}), {} {} ({})").format(
        "The" if is_only else "the",
        fastest.method,
        seconds_text(fastest.median_s),
        how,
        faster_text(question.speed_up(fastest)),
        slowest.method,
        seconds_text(slowest.median_s),
    )
    lost = regret(question, fastest.method)
    if lost is None or fastest is question.reference:
        return text + "."
    return text + (
        ", with an equally good winner." if lost <= SAME_SCORE else f", but its winner scores {lost:.3f} lower."
    )


def faster_text(ratio: float) -> Markup:
    """Say how two times compare: a gain, a loss, or neither; completed by what the time is compared with."""
    if abs(math.log(ratio)) < SAME_TIME:
        return Markup("as long as")
    if ratio < 1:
        return Markup("<b>{}</b> as long as").format(ratio_text(1 / ratio))
    return Markup("<b>{}</b> faster than").format(ratio_text(ratio))


def _overall_speed(run: Run) -> list[Markup]:
    """Say each method's mean speed-up over all questions, noisy times included, and how many times are noisy."""
    gains: dict[tuple[str, str], list[float]] = {}
    for question in run.questions:
        for runs in question.methods:
            if runs is not question.slowest and question.speed_up(runs) > 0:
                gains.setdefault((runs.method, question.slowest.method), []).append(question.speed_up(runs))
    found = [
        Markup("Over {}, <b>{}</b> {} {} {}{}.").format(
            plural(len(ratios), "question"),
            method,
            "is" if math.log(geometric_mean(ratios)) >= SAME_TIME else "takes",
            faster_text(geometric_mean(ratios)),
            against,
            f" (geometric mean; {ratio_text(min(ratios))} to {ratio_text(max(ratios))})" if len(ratios) > 1 else "",
        )
        for (method, against), ratios in sorted(gains.items(), key=lambda item: -geometric_mean(item[1]))
    ]
    num_noisy = sum(runs.is_noisy for question in run.questions for runs in question.methods)
    num_all = sum(len(question.methods) for question in run.questions)
    if num_noisy:
        found.append(
            Markup("{} of {} timings are noisy; they are marked below, with the reasons.").format(num_noisy, num_all)
        )
    return found


def _savings(run: Run, contents: StoreContents) -> Markup:
    if contents.bytes_if_copied and contents.saved_share is not None:
        text = Markup("The store holds {} in <b>{}</b>; whole copies would take {}, so ").format(
            plural(contents.num_in_store, "snapshot"),
            bytes_text(contents.bytes_on_disk),
            bytes_text(contents.bytes_if_copied),
        )
        if contents.saved_share <= 0:
            return text + "sharing blocks saves nothing here."
        return text + Markup("sharing blocks saves <b>{}</b>.").format(share_text(contents.saved_share))
    added, copied = run.recorded_bytes
    if not copied:
        return Markup("")
    return Markup("The run's snapshots added <b>{}</b> to the store; whole copies would have taken {}.").format(
        bytes_text(added), bytes_text(copied)
    )

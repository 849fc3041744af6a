"""Measures of series against slow, literal twins; the report on tables."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly.errors import DataError, ParameterError
from anomaly.evaluation import (
    _Curve,
    affiliation,
    detection_delay,
    evaluate,
    evaluate_series,
    range_precision_recall,
    ranges_of,
    vus_pr,
)

flags = st.lists(st.booleans(), min_size=1, max_size=40)
pairs = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.lists(st.booleans(), min_size=n, max_size=n).filter(any),
        st.lists(st.booleans(), min_size=n, max_size=n),
    )
)


@given(flags)
def test_ranges_cover_exactly_the_true_points(labels):
    rebuilt = np.zeros(len(labels), dtype=bool)
    for start, stop in ranges_of(labels):
        assert stop > start
        assert not rebuilt[max(start - 1, 0) : stop].any()  # runs never touch
        rebuilt[start:stop] = True
    assert rebuilt.tolist() == labels


def slow_range_reward(spans, others, weigh, reciprocal):
    rewards = []
    for start, stop in spans:
        positions = range(start, stop)
        weights = {p: weigh(i + 1, stop - start) for i, p in enumerate(positions)}
        meets = [o for o in others if o[0] < stop and o[1] > start]
        got = sum(weights[p] for o in meets for p in positions if o[0] <= p < o[1])
        factor = 1 / len(meets) if reciprocal and len(meets) > 1 else 1
        rewards.append((factor * got / sum(weights.values()), bool(meets)))
    return rewards


SLOW_BIASES = {
    "flat": lambda i, n: 1,
    "front": lambda i, n: n - i + 1,
    "back": lambda i, n: i,
    "middle": lambda i, n: min(i, n - i + 1),
}


@given(
    pairs, st.sampled_from(sorted(SLOW_BIASES)), st.booleans(), st.sampled_from([0.0, 0.3, 1.0])
)
def test_range_precision_and_recall_equal_the_papers_formulas(pair, bias, reciprocal, alpha):
    labels, predicted = pair
    real, found = ranges_of(labels), ranges_of(predicted)
    rewards = slow_range_reward(real, found, SLOW_BIASES[bias], reciprocal)
    recall = np.mean([alpha * met + (1 - alpha) * reward for reward, met in rewards])
    precisions = slow_range_reward(found, real, SLOW_BIASES["flat"], reciprocal)
    precision = np.mean([reward for reward, _ in precisions]) if precisions else 0.0
    score = range_precision_recall(
        labels,
        predicted,
        bias=bias,
        reciprocal_cardinality=reciprocal,
        existence_weight=alpha,
    )
    assert score.recall == pytest.approx(recall)
    assert score.precision == pytest.approx(precision)


def slow_vus_pr(labels, scores, max_buffer):
    """The surface of the paper, threshold by threshold and point by point."""
    labels = np.asarray(labels, dtype=float)
    areas = []
    for buffer in range(max_buffer + 1):
        soft = labels.copy()
        for start, stop in ranges_of(labels > 0):
            end = stop - 1
            for i in range(end, min(end + buffer // 2, len(labels))):
                soft[i] += np.sqrt(1 - (i - end) / buffer)
            for i in range(max(start - buffer // 2, 0), start):
                soft[i] += np.sqrt(1 - (start - i) / buffer)
        soft = np.minimum(soft, 1)
        segments = ranges_of(soft > 0)
        area, before = 0.0, 0.0
        for threshold in sorted(set(scores), reverse=True):
            alarm = np.asarray(scores) >= threshold
            hit = (soft * alarm).sum()
            met = np.mean([alarm[start:stop].any() for start, stop in segments])
            recall = min(hit / ((labels.sum() + soft.sum()) / 2), 1) * met
            area += (recall - before) * hit / alarm.sum()
            before = recall
        areas.append(area)
    return np.mean(areas)


@settings(max_examples=60)
@given(pairs, st.integers(0, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_vus_pr_equals_the_slow_surface(pair, max_buffer, seed, ties):
    labels = pair[0]
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, len(labels)) if ties else rng.normal(size=len(labels))
    expected = slow_vus_pr(labels, scores.tolist(), max_buffer)
    assert vus_pr(labels, scores, max_buffer=max_buffer) == pytest.approx(expected)


def test_vus_pr_of_a_random_score_is_about_the_labelled_share():
    rng = np.random.default_rng(0)
    labels = np.zeros(5000, dtype=bool)
    for start in (500, 2000, 4000):
        labels[start : start + 100] = True
    values = [vus_pr(labels, rng.random(5000)) for _ in range(5)]
    assert 0.05 < np.mean(values) < 0.1  # 6 % labelled, soft borders add a little


def test_infinite_scores_rank_like_any_other():
    labels = [0, 0, 1, 1, 0, 0]
    assert vus_pr(labels, [0, -np.inf, np.inf, 9, 0, 0], max_buffer=0) == 1.0


def slow_affiliation(labels, predicted, step=0.01):
    """Precision and recall of the paper by brute numerical integration."""
    real, found, n = ranges_of(labels), ranges_of(predicted), len(labels)
    cuts = [0, *[(a[1] + b[0]) / 2 for a, b in itertools.pairwise(real)], n]
    precisions, recalls = [], []
    for event, low, high in zip(real, cuts[:-1], cuts[1:], strict=True):
        grid = np.arange(low, high, step) + step / 2

        def distance(x, spans):
            gaps = [np.maximum(np.maximum(s[0] - x, x - s[1]), 0) for s in spans]
            return np.min(gaps, axis=0)

        spans = [(max(s, low), min(e, high)) for s, e in found if min(e, high) > max(s, low)]
        if not spans:
            recalls.append(0.0)
            continue
        inside = grid[np.any([(grid > s) & (grid < e) for s, e in spans], axis=0)]
        far = distance(grid, [event])
        mine = distance(inside, [event])
        precisions.append(np.mean([1.0 if d == 0 else np.mean(far > d) for d in mine]))
        points = grid[(grid > event[0]) & (grid < event[1])]
        near = distance(points, spans)
        recalls.append(
            np.mean([np.mean(np.abs(grid - y) > d) for y, d in zip(points, near, strict=True)])
        )
    return np.mean(precisions) if precisions else 0.0, np.mean(recalls)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(2, 12).flatmap(
        lambda n: st.tuples(
            st.lists(st.booleans(), min_size=n, max_size=n).filter(any),
            st.lists(st.booleans(), min_size=n, max_size=n),
        )
    )
)
def test_affiliation_equals_numerical_integration(pair):
    precision, recall = slow_affiliation(*pair)
    score = affiliation(*pair)
    assert score.precision == pytest.approx(precision, abs=0.02)
    assert score.recall == pytest.approx(recall, abs=0.02)


def test_perfect_alarms_score_one_everywhere():
    labels = np.zeros(50, dtype=int)
    labels[10:15] = labels[30:31] = 1
    assert range_precision_recall(labels, labels) == (1, 1, 1)
    assert affiliation(labels, labels) == pytest.approx((1, 1, 1))
    assert vus_pr(labels, labels, max_buffer=0) == 1
    assert detection_delay(labels, labels) == (2, 2, 0, 0)


def test_one_touched_point_does_not_count_as_the_whole_range():
    labels = np.repeat([0, 1, 0], [40, 20, 40])
    touched = np.zeros(100, dtype=bool)
    touched[50] = True
    assert range_precision_recall(labels, touched).recall == pytest.approx(1 / 20)


@given(pairs)
def test_delay_equals_a_walk_through_the_series(pair):
    labels, predicted = pair
    delays = []
    for start, stop in ranges_of(labels):
        for i in range(start, stop):
            if predicted[i]:
                delays.append(i - start)
                break
    delay = detection_delay(labels, predicted)
    assert (delay.found, delay.total) == (len(delays), len(ranges_of(labels)))
    if delays:
        assert delay.mean == pytest.approx(np.mean(delays))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vus_pr([0, 0], [1, 2]), "labels holds no anomaly"),
        (lambda: vus_pr([0, 1], [1, np.nan]), "scores must be numbers, got NaN at 1"),
        (lambda: vus_pr([0, 1], [1]), "labels has 2 values, scores has 1"),
        (
            lambda: affiliation([0, 3], [0, 1]),
            "labels must hold 0 and 1 only, got np.int64\\(3\\)",
        ),
        (lambda: detection_delay([[0, 1]], [0, 1]), "labels must have one dimension"),
    ],
)
def test_bad_data_is_refused_by_name(call, message):
    with pytest.raises(DataError, match=message):
        call()


def test_bad_options_are_refused_by_name():
    with pytest.raises(ParameterError, match="existence_weight must be from 0 to 1, got 2"):
        range_precision_recall([1], [1], existence_weight=2)
    with pytest.raises(ParameterError, match=r"bias must be one of .*got 'up'"):
        range_precision_recall([1], [1], bias="up")
    with pytest.raises(ParameterError, match="max_buffer must be 0 or more, got -1"):
        vus_pr([1], [1], max_buffer=-1)


# ------------------------------------------------------------------- reports


def scored(n=300, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.15
    scores = rng.normal(size=n) + 1.5 * labels
    return labels, np.round(scores) if ties else scores


@pytest.mark.parametrize("ties", [False, True])
def test_areas_equal_scikit_learns_under_any_weights(ties):
    labels, scores = scored(ties=ties)
    weights = np.random.default_rng(1).integers(0, 4, len(labels)).astype(float)
    for weight in (None, weights):
        auroc, precision = _Curve(labels, scores).areas(weight)
        assert auroc == pytest.approx(roc_auc_score(labels, scores, sample_weight=weight))
        expected = average_precision_score(labels, scores, sample_weight=weight)
        assert precision == pytest.approx(expected)


def test_ranking_has_intervals_and_a_row_of_chance():
    labels, scores = scored()
    ranking = evaluate(labels, {"mine": scores, "worse": -scores}).tables["Ranking"]
    assert list(ranking.index) == ["mine", "worse", "random score"]
    assert (ranking["AUROC low"] < ranking["AUROC"]).all()
    assert (ranking["AUROC"] < ranking["AUROC high"]).all()
    assert ranking.loc["random score", "AUROC"] == pytest.approx(0.5, abs=0.02)
    assert ranking.loc["random score", "AP"] == pytest.approx(labels.mean(), abs=0.03)


def test_bootstrap_intervals_cover_the_truth():
    # Two normal distributions 1.5 apart: the area is Phi(1.5 / sqrt 2) = 0.8556.
    covered = 0
    for seed in range(60):
        ranking = evaluate(*scored(200, seed), n_bootstrap=200).tables["Ranking"].loc["score"]
        covered += ranking["AUROC low"] <= 0.8556 <= ranking["AUROC high"]
    assert covered >= 50


def test_precision_at_k_shares_out_ties():
    labels = np.array([1, 0, 1, 0, 0, 0])
    top = evaluate(labels, [3, 2, 2, 2, 1, 0], k=(1, 2, 4, 99)).tables["Top of the list"]
    assert list(top.columns) == [
        *(f"precision at {k}" for k in (1, 2, 4)),
        *(f"found at {k}" for k in (1, 2, 4)),
    ]
    assert top.loc["score"].tolist() == pytest.approx([1, (1 + 1 / 3) / 2, 0.5, 0.5, 2 / 3, 1])
    assert top.loc["random score"].tolist() == pytest.approx([1 / 3] * 3 + [1 / 6, 1 / 3, 2 / 3])


def test_types_are_judged_against_all_normal_rows():
    labels, scores = scored()
    types = np.where(labels, np.where(np.arange(300) % 2, "odd", "even"), "record")
    table = evaluate(labels, scores, predicted=scores > 1, types=types).tables["By type"]
    chosen = (types == "odd") | ~labels
    expected = roc_auc_score(labels[chosen], scores[chosen])
    assert table.loc["odd", "AUROC"] == pytest.approx(expected)
    assert table.loc["odd", "flagged"] == pytest.approx((scores[types == "odd"] > 1).mean())
    assert np.isnan(table.loc["record", "AUROC"])
    assert table["rows"].sum() == 300


def test_injected_labels_are_named_for_what_they_are():
    labels, scores = scored()
    assert evaluate(labels, scores).notes == []
    assert "say little about real anomalies" in evaluate(labels, scores, injected=True).notes[0]


def series():
    labels = np.zeros(600, dtype=bool)
    labels[100:130] = labels[400:410] = True
    scores = np.random.default_rng(0).random(600) * 0.6
    scores[105:112] = scores[403] = 0.9
    return labels, scores


def test_series_tables_repeat_the_measures():
    labels, scores = series()
    report = evaluate_series(labels, scores, threshold=0.7, max_buffer=10)
    ranges = report.tables["Ranges"].loc["score"]
    alarms = scores > 0.7
    assert ranges["recall"] == range_precision_recall(labels, alarms).recall
    assert ranges["VUS-PR"] == vus_pr(labels, scores, max_buffer=10)
    assert ranges["affiliation precision"] == affiliation(labels, alarms).precision
    assert report.tables["Delay"].loc["score"].tolist() == [2, 2, 4.0, 4.0]
    assert "random score" in report.tables["Ranges"].index
    ranking = report.tables["Ranking"].loc["score"]
    assert ranking["AUROC low"] < ranking["AUROC"] < ranking["AUROC high"]


def test_the_ranking_says_what_it_counts_and_what_its_intervals_are():
    labels, scores = scored()
    report = evaluate(labels, scores, types=np.where(labels, "odd", "usual"), n_bootstrap=20)
    caption = report.captions["Ranking"]
    assert caption.startswith(f"{sum(labels)} anomalies among {len(labels)}. ")
    assert "95 % intervals" in caption
    assert caption in str(report)
    assert caption in report.html()
    assert "<th>type</th>" not in report.html()  # no row of its own for the name of the index


def test_curves_begin_at_no_alarm_and_show_all_of_both_axes():
    labels = np.arange(200) < 40
    scores = np.where(labels, 1.0, 0.0)  # the first threshold finds all at once
    scores[[30, 100]] = [0.0, 1.0]
    roc, pr = evaluate(labels, scores, n_bootstrap=20).figure("Curves").axes
    x, y = pr.lines[0].get_data()
    assert (x[0], y[0]) == (0.0, 39 / 40)
    assert (roc.lines[0].get_xdata()[0], roc.lines[0].get_ydata()[0]) == (0, 0)
    assert pr.get_xlim() == pr.get_ylim() == (-0.02, 1.02)


@pytest.mark.parametrize("n_types", [1, 12])
def test_bars_of_types_are_of_one_height_however_many(n_types):
    labels, scores = scored()
    types = np.where(labels, np.arange(len(labels)) % n_types, -1).astype(str)
    figure = evaluate(labels, scores, types=types, n_bootstrap=20).figure("By type")
    figure.draw_without_rendering()
    bars = figure.axes[0].patches
    assert len(bars) == n_types
    pixels = {round(bar.get_window_extent().height) for bar in bars}
    assert max(pixels) < 100  # of 450 in a figure of the usual height


@pytest.mark.parametrize("kind", ["table", "series"])
def test_the_page_is_self_contained_and_escapes_names(kind, tmp_path):
    name = "<script>alert(1)</script>"
    if kind == "table":
        labels, scores = scored()
        types = np.where(labels, name, "record")
        report = evaluate(labels, {name: scores}, types=types, title=name, n_bootstrap=20)
    else:
        labels, scores = series()
        report = evaluate_series(labels, {name: scores}, title=name, n_bootstrap=20)
    page = report.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == len(report.figures) == 2
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    for heading in (*report.tables, *report.figures):
        assert f"<h2>{heading}</h2>" in page
    assert str(report).startswith(name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate([1, 1], [1, 2]), "labels holds no normal row"),
        (lambda: evaluate([0, 1], {}), "scores holds no score"),
        (lambda: evaluate([0, 1], [1, 2], types=["a"]), "types has 1"),
        (lambda: evaluate([0, 1], [1, 2], types=["a", "b"], predicted=[1]), "predicted has 1"),
    ],
)
def test_reports_refuse_what_cannot_be_measured(call, message):
    with pytest.raises(DataError, match=message):
        call()

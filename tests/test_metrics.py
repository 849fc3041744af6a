from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score

from anomaly.metrics import confusion_ratios


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_ratios_equal_scikit_learns_metrics_bit_for_bit(pairs):
    truth, guess = np.array(pairs).T
    ratios = confusion_ratios(confusion_matrix(truth, guess, labels=[False, True]))
    assert ratios.F1 == f1_score(truth, guess, zero_division=0)
    assert ratios.PPV == precision_score(truth, guess, zero_division=0)
    assert ratios.TPR == recall_score(truth, guess, zero_division=0)


def test_empty_matrix_gives_zeros_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(confusion_ratios([[0, 0], [0, 0]])) == {0.0}


@pytest.mark.parametrize("matrix", [[[1, 2, 3]], [[1, -1], [0, 0]], [1, 2, 3, 4]])
def test_wrong_matrix_is_refused(matrix):
    with pytest.raises(ValueError, match=r"matrix must be \[\[tn, fp\], \[fn, tp\]\]"):
        confusion_ratios(matrix)

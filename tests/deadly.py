"""A classifier that dies, in a module that a worker process imports quickly."""

from __future__ import annotations

import os
import signal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin


class Deadly(ClassifierMixin, BaseEstimator):
    """Dies without a word for one value, and leaves a mark at every fit."""

    def __init__(self, value=0, marks=""):
        self.value = value
        self.marks = marks

    def fit(self, X, y):
        with open(self.marks, "a") as file:
            file.write(f"{self.value}\n")
        if self.value == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[self.value % 2])

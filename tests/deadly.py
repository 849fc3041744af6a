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


class DeadlyRecord(ClassifierMixin, BaseEstimator):
    """Predicts by a limit of the last feature, and dies of a record beyond all limits."""

    def __init__(self, limit=0.5, deadly=1e5):
        self.limit = limit
        self.deadly = deadly

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        if (X > self.deadly).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return self.classes_[(X[:, -1] > self.limit).astype(int)]

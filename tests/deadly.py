"""Classifiers that die or hang, in a module that a worker process imports quickly."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.tree import DecisionTreeClassifier


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


class SilentError(Exception):
    """Has no text."""

    def __str__(self):
        raise ValueError


class Quitter(ClassifierMixin, BaseEstimator):
    """Ends its process in three ways of Python, for three values."""

    def __init__(self, value=0):
        self.value = value

    def fit(self, X, y):
        ways = {3: SystemExit(3), 5: SilentError(), 7: KeyboardInterrupt()}
        if self.value in ways:
            raise ways[self.value]
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[self.value % 2])


class Slow(ClassifierMixin, BaseEstimator):
    """Takes its time, hangs for one value, and says which process's child fitted it."""

    def __init__(self, value=0, marks="", seconds=0.0):
        self.value = value
        self.marks = marks
        self.seconds = seconds

    def fit(self, X, y):
        with open(self.marks, "a") as file:
            file.write(f"{os.getppid()} {self.value}\n")
        time.sleep(600 if self.value == 3 else self.seconds)
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[self.value % 2])


class Regicide(Slow):
    """Kills the process above its own for one value, as when a host runs out of memory."""

    def fit(self, X, y):
        if self.value == 5:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        return super().fit(X, y)


class SlowTree(DecisionTreeClassifier):
    """A tree that takes a fifth of a second."""

    def fit(self, X, y, sample_weight=None, check_input=True):
        time.sleep(0.2)
        return super().fit(X, y, sample_weight, check_input)

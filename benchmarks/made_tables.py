"""Make labelled tables from the data sets that come with scikit-learn, for benchmarks/tabular.py.

    python benchmarks/made_tables.py tables/

Two sorts. In tables of classes (`wine_0`) the rows of one class, thinned until
they are one in twenty, are the anomalies. In tables of kinds (`wine_local`) all
rows are drawn from a mixture of Gaussians fitted to real ones, and the
anomalies deviate in one of four known ways: the mixture with five times the
covariance (local), uniform over 1.1 times the range (global), each column by
itself (dependency), the mixture with centres five times as far out (cluster).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn import datasets
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import MinMaxScaler

Table = tuple[str, np.ndarray, np.ndarray]

N_ROWS = 1_500
SHARE = 0.05  # of anomalies
KINDS = ("local", "global", "dependency", "cluster")


def class_tables() -> Iterator[Table]:
    rng = np.random.default_rng(0)
    for name in ("iris", "wine", "digits"):
        X, classes = getattr(datasets, f"load_{name}")(return_X_y=True)
        for odd in np.unique(classes):
            normal, odd_rows = X[classes != odd], X[classes == odd]
            n_odd = max(5, round(SHARE / (1 - SHARE) * len(normal)))
            thinned = rng.permutation(odd_rows)[:n_odd]
            yield f"{name}_{odd}", *joined(normal, thinned)


def kind_tables() -> Iterator[Table]:
    for name, rows in base_tables():
        mixture = chosen_mixture(rows)
        for kind in KINDS:
            normal, _ = mixture.sample(N_ROWS)
            odd = anomalies(kind, mixture, normal, round(SHARE * N_ROWS))
            yield f"{name}_{kind}", *joined(normal, odd)


def base_tables() -> Iterator[tuple[str, np.ndarray]]:
    """Real normal rows between 0 and 1; digits as their first 20 principal components."""
    benign, classes = datasets.load_breast_cancer(return_X_y=True)
    digits = datasets.load_digits().data
    yield "iris", MinMaxScaler().fit_transform(datasets.load_iris().data)
    yield "wine", MinMaxScaler().fit_transform(datasets.load_wine().data)
    yield "diabetes", MinMaxScaler().fit_transform(datasets.load_diabetes().data)
    yield "benign", MinMaxScaler().fit_transform(benign[classes == 1])
    yield "digits", MinMaxScaler().fit_transform(PCA(20, random_state=0).fit_transform(digits))


def chosen_mixture(rows: np.ndarray) -> GaussianMixture:
    """The mixture of 1 to 5 Gaussians with the least Bayesian information criterion."""
    mixtures = [GaussianMixture(n, reg_covar=1e-4, random_state=0).fit(rows) for n in range(1, 6)]
    return min(mixtures, key=lambda mixture: mixture.bic(rows))


def anomalies(kind: str, mixture: GaussianMixture, normal: np.ndarray, n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    if kind == "global":
        low, high = normal.min(axis=0), normal.max(axis=0)
        return (low + high) / 2 + rng.uniform(-0.55, 0.55, (n, len(low))) * (high - low)
    if kind == "dependency":
        columns = [
            KernelDensity(bandwidth="silverman").fit(column[:, None]).sample(n, random_state=i)
            for i, column in enumerate(normal.T)
        ]
        return np.column_stack(columns)
    odd = GaussianMixture(mixture.n_components, random_state=1)
    odd.weights_, odd.means_, odd.covariances_ = (
        mixture.weights_,
        mixture.means_ * (5 if kind == "cluster" else 1),
        mixture.covariances_ * (5 if kind == "local" else 1),
    )
    return odd.sample(n)[0]


def joined(normal: np.ndarray, odd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([normal, odd]), np.repeat([0, 1], [len(normal), len(odd)])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where the .npz files go; made if need be")
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, X, y in (*class_tables(), *kind_tables()):
        np.savez_compressed(folder / f"{name}.npz", X=X, y=y)
        count += 1
    print(f"{count} tables in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

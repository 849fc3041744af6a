"""The obvious NumPy twin of libdetect's window features: the oracle of its tests, nothing else."""

from __future__ import annotations

import numpy as np

NAMES = ["step", "median", "diff_b", "diff_c", "ratio_b", "ratio_c"]
NAMES += ["both", "envelope", "short", "root", "root_both"]
ROOTS = ("root", "root_both")


def filled(values):
    """Gaps take the last known value, those at the start the first."""
    values = np.array(values, dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    if len(known) == 0:
        return values
    before = np.searchsorted(known, np.arange(len(values)), side="right") - 1
    return values[known[np.maximum(before, 0)]]


def medians_before(values, k, first, last):
    return np.array([np.median(values[j - k : j]) for j in range(first, last + 1)])


def gain(today, past):
    with np.errstate(all="ignore"):
        ratio = np.clip(today / past, 0.25, 4.0)
    return np.where((today > 0) & (past > 0), ratio, 1.0)


def q99(values):
    return np.quantile(np.abs(values), 0.99)


def ratio_or_nan(above, below):
    return above / below if below > 0 else np.nan


class Window:
    """Every quantity of one window, computed the slow way."""

    def __init__(self, c, b, a):
        w = self.w = len(a) - 1
        self.k = k = min(15, w // 2)
        self.n = n = min(150, w - k)
        self.known = [np.sum(~np.isnan(day)) >= 10 for day in (b, c)]
        self.a, days = filled(a), [filled(b), filled(c)]
        self.days = days
        self.x = self.a[-1]
        here = np.arange(w - n, w + 1)
        past = [day for day, known in zip(days, self.known, strict=True) if known]
        history = np.concatenate([*past, self.a[:-1]])
        self.history = history
        self.unit = float(np.all(history == np.round(history)))
        self.tiny = 1e-9 * np.abs(history).max() + 1e-300
        self.sigma = max(history.std(), self.tiny)
        self.median = medians_before(self.a, k, w - n, w)
        self.level = self.median[-1]
        self.soft = max(1e-6 * abs(self.level), 0.5 * self.unit, self.tiny)
        self.floor = max(0.005 * abs(self.level), self.soft)
        pairs = zip(days, self.known, strict=True)
        self.day = [self.measure_day(day) if known else None for day, known in pairs]
        self.series = self.residuals(here)

    def measure_day(self, day):
        w, n = self.w, self.n
        before = medians_before(day, self.k, w - n, w)
        every = day[self.k :] - medians_before(day, self.k, self.k, 2 * w)
        near = np.array([day[j - 3 : j + 4] for j in range(w - n, w + 1)])
        return {
            "before": before,
            "around": np.median(near, axis=1),
            "low": near.min(axis=1),
            "high": near.max(axis=1),
            "q99": q99(every),
            "max": np.abs(every).max(),
            "now": day[w],
        }

    def residuals(self, here):
        rest = self.a[here] - self.median
        root = np.sqrt(np.abs(self.median) + self.unit + self.tiny)
        series = {
            "step": self.a[here] - self.a[here - 1],
            "median": rest,
            "short": np.array([self.a[j] - np.median(self.a[j - 5 : j]) for j in here]),
            "root": rest / root,
        }
        low = high = np.zeros(len(here))
        ratios = []
        for name, day in zip("bc", self.day, strict=True):
            if day is None:
                series[f"diff_{name}"] = series[f"ratio_{name}"] = np.full(len(here), np.nan)
                continue
            g = gain(self.median, day["before"])
            shape = day["around"] - day["before"]
            series[f"diff_{name}"] = rest - shape
            series[f"ratio_{name}"] = rest - shape * g
            ratios.append(series[f"ratio_{name}"])
            low = np.minimum(low, (day["low"] - day["before"]) * g)
            high = np.maximum(high, (day["high"] - day["before"]) * g)
        series["both"] = np.mean(ratios or [rest], axis=0)
        over = np.where(rest > high, rest - high, 0.0)
        series["envelope"] = np.where(rest < low, rest - low, over)
        series["root_both"] = series["both"] / root
        return series

    def spread(self, name, least):
        return max(q99(self.series[name][:-1]) / 2.576, least)

    def parts(self):
        jump = abs(self.series["median"][-1])
        local = jump / self.spread("median", self.floor)
        wide = [jump / max(d["q99"] / 2.576, self.floor) if d else None for d in self.day]
        known = [value for value in wide if value is not None] or [local]
        season = "diff_b" if self.day[0] else "diff_c" if self.day[1] else None
        return np.array(
            [
                abs(self.series["step"][-1]) / self.spread("step", self.floor) / 2.773,
                abs(self.series[season][-1]) / self.spread(season, self.floor) / 3.706
                if season
                else 0.0,
                np.sqrt(local) * (known[0] * known[-1]) ** 0.25 / 2.493,
                abs(self.x - self.history.mean()) / self.sigma / 1.912,
            ]
        )

    def middle(self, name):
        return 1.4826 * np.median(np.abs(self.series[name][:-1]))

    def features(self):
        f = [*self.scale_features(), *self.parts(), *self.day_features()]
        f += [*self.global_features(), *self.context_features()]
        return np.clip(np.array(f, dtype=float), -1e30, 1e30)

    def scale_features(self):
        for name in NAMES:
            x, history = self.series[name][-1], self.series[name][:-1]
            least = 0.5 * self.unit + 1e-9 if name in ROOTS else self.soft
            if np.isnan(x):
                yield from [np.nan] * 3
                continue
            if name not in ROOTS:
                yield x / self.spread(name, self.floor)
            yield x / self.spread(name, least)
            yield abs(x) / max(np.abs(history).max(), least)

    def day_features(self):
        jump = abs(self.series["median"][-1])
        for day in self.day:
            if day is None:
                yield from [np.nan] * 5
                continue
            past, scale = day["before"][-1], max(day["q99"] / 2.576, self.floor)
            yield jump / scale
            yield jump / max(day["max"], self.soft)
            yield (day["now"] - past) / scale
            yield max(day["high"][-1] - past, past - day["low"][-1]) / scale
            yield ratio_or_nan(self.level, past)

    def global_features(self):
        most, least, mean = self.history.max(), self.history.min(), self.history.mean()
        guess = self.x - self.series["both"][-1]
        yield (self.x - mean) / self.sigma
        yield (self.x - most) / self.sigma
        yield (least - self.x) / self.sigma
        yield (self.level - mean) / self.sigma
        yield ratio_or_nan(self.x, self.level)
        yield ratio_or_nan(self.x, guess)
        yield ratio_or_nan(self.x, most)

    def context_features(self):
        last = {name: values[-1] for name, values in self.series.items()}
        size = {name: np.abs(values[:-1]) for name, values in self.series.items()}
        level, noise = abs(self.level) + self.tiny, self.middle("median")
        scale, rest = self.spread("median", self.floor), self.series["median"]
        recent = size["step"][-20:].mean()
        yield last["step"] / max(self.middle("step"), self.soft)
        yield last["median"] / max(noise, self.soft)
        yield last["both"] / max(self.middle("both"), self.soft)
        yield last["root_both"] / max(self.middle("root_both"), 0.5 * self.unit + 1e-9)
        yield noise / level
        yield q99(size["median"]) / max(noise, self.soft)
        yield size["both"].mean() / max(size["median"].mean(), self.tiny)
        yield noise / np.sqrt(level + self.unit)
        yield np.mean(self.a[:-1] == 0)
        yield self.unit
        yield last["median"] / np.sqrt(level + 1) if self.unit else np.nan
        yield rest[-2] / scale
        yield rest[-3] / scale
        yield size["median"][-5:].max() / scale
        yield (np.median(self.a[-5:]) - self.median[-5 if self.n > 5 else 0]) / scale
        for name in ("step", "median", "both"):
            yield np.mean(size[name] >= abs(last[name]))
        yield recent / max(size["step"].mean(), self.tiny)
        yield last["step"] / max(recent, self.soft)


def measure(row, window):
    """Parts and features of one row in the order c, b, a."""
    full = 2 * window + 1
    found = Window(row[:full], row[full : 2 * full], row[2 * full :])
    return found.parts(), found.features()

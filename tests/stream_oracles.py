"""Slow, obvious twins of the native stream kernels, in plain Python."""

from __future__ import annotations

import math
import struct

import numpy as np

MASK = 2**64 - 1
LARGEST = 1.7976931348623157e308


def scramble(x):
    for _ in range(2):
        x = (x ^ (x >> 32)) * 0xD6E8FEB86659FD93 & MASK
    return x ^ (x >> 32)


def oracle_asinh(x):
    a = min(abs(x), LARGEST)
    e = 0
    root = math.sqrt(1.0 + a * a) if a < 1e8 else a
    w = a + root if a < 1e8 else a
    if w < 1.4142135623730951:
        t = a / (1.0 + root)
    else:
        m, e = math.frexp(w)
        if m < 0.7071067811865476:
            m, e = m * 2.0, e - 1
        e += a >= 1e8
        t = (m - 1.0) / (m + 1.0)
    s = t * t
    series = 1 / 23
    for k in range(21, 1, -2):
        series = series * s + 1 / k
    high, low = 6.93147180369123816490e-01, 1.90821492927058770002e-10
    result = e * low + 2.0 * (t + t * s * series) + e * high
    return -result if x < 0 else result


def oracle_decay(x):
    halvings = 0
    while x > 0.25 and halvings < 64:
        x, halvings = x * 0.5, halvings + 1
    total = 1.0
    for k in range(16, 0, -1):
        total = 1.0 - x * total / k
    for _ in range(halvings):
        total *= total
    return total


def centre_and_scale(values):
    if not values:
        return 0.0, 1.0
    v = sorted(values)
    n = len(v)
    centre = 0.5 * v[(n - 1) // 2] + 0.5 * v[n // 2]
    largest = max(abs(v[0]), abs(v[-1]))
    unit = largest if largest > 1e100 else 1.0
    mean = 0.0
    for x in v:
        mean += x / unit
    mean /= n
    total = 0.0
    for x in v:
        total += (x / unit - mean) * (x / unit - mean)
    return centre, max(unit * math.sqrt(total / n), 1e-9)


class Likelihood:
    def __init__(self, mean_floor, variance_floor, period):
        self.mean_floor, self.variance_floor, self.period = mean_floor, variance_floor, period
        self.n, self.m, self.v = 0, 0.0, 0.0

    def deviation(self, a):
        z = (a - max(self.m, self.mean_floor)) / math.sqrt(max(self.v, self.variance_floor))
        return min(max(z, 0.0), 15.0)

    def learn(self, a):
        self.n += 1
        k = 1.0 / min(float(self.n), float(self.period))
        delta = a - self.m
        self.m += k * delta
        self.v = (1.0 - k) * (self.v + k * (delta * delta))


class Range:
    """Blocks of values; the range is that of the last two blocks, or of all of them."""

    def __init__(self, period):
        self.period, self.blocks = period, [[]]

    def novelty(self, x):
        seen = [v for block in self.blocks[-2:] for v in block]
        if not seen:
            return 0.0
        low, high = min(seen), max(seen)
        with np.errstate(over="ignore"):
            width = float(np.float64(high) - np.float64(low))
            above = float(np.float64(max(x, high)) - high)
            below = float(low - np.float64(min(x, low)))
            outside = above or below
        if not width > 0 or outside == 0.0 or math.isinf(width):
            return 0.0
        return outside / width

    def learn(self, x):
        if self.period and len(self.blocks[-1]) >= self.period:
            self.blocks.append([])
        self.blocks[-1].append(x)


class Alarm:
    def __init__(self, deviation_scale, range_scale, fatigue, fatigue_period, rest):
        self.z0, self.tol, self.gam = deviation_scale, range_scale, fatigue
        self.keep, self.rest = oracle_decay(1.0 / fatigue_period), rest
        self.recent, self.age = 0.0, math.inf

    def score(self, z, e):
        s1, s2 = min(z / self.z0, 4.0), min(e / self.tol, 4.0)
        g = s1 / (1.0 + self.gam * self.recent)
        self.age += 1
        self.recent *= self.keep
        resting = self.age <= self.rest
        if resting:
            g = 0.5 * min(g, 1.0)
        y = max(g, s2)
        if y >= 1.0:
            self.recent += 1.0
        if y >= 1.0 or (resting and s1 >= 1.0):
            self.age = 0
        return y / (1.0 + y)


def power_mean(z, power):
    if not z:
        return 0.0
    total = 0.0
    for value in z:
        if power == 8:
            fourth = (value * value) * (value * value)
            total += fourth * fourth
        else:
            product = 1.0
            for _ in range(power):
                product *= value
            total += product
    mean = total / len(z)
    return math.sqrt(math.sqrt(math.sqrt(mean))) if power == 8 else mean ** (1.0 / power)


class OracleTiles:
    """One field, straight from the description in docs/streams.md."""

    def __init__(
        self,
        learning_period=600,
        n_tilings=12,
        likelihood_lag=50,
        power=8,
        range_period=None,
        random_state=0,
    ):
        self.L, self.T, self.lag, self.p = learning_period, n_tilings, likelihood_lag, power
        self.seed, self.bits, self.buffer = random_state, set(), []
        self.past = [Likelihood(0.01, 0.0003, 4000) for _ in range(7)]
        self.range = Range(range_period)
        self.alarm = Alarm(4.25, 0.05, 0.05, 3000, int(60 + 0.2 * self.L))
        self.history = [[] for _ in range(7)]  # novel tiles per record
        self.recent = [[] for _ in range(7)]  # a_c per record
        self.t = 0

    def process(self, x, seconds):
        if math.isnan(x):
            return 0.0, 0.0
        if len(self.buffer) < self.L:
            return self.learning_record(x, seconds)
        return self.step(x, seconds, live=True)

    def learning_record(self, x, seconds):
        if math.isinf(x):
            return 0.8, 0.0
        self.buffer.append((x, seconds))
        if len(self.buffer) == self.L:
            self.centre, self.scale = centre_and_scale([x for x, _ in self.buffer])
            for value, second in self.buffer:
                self.step(value, second, live=False)
        return 0.0, 0.0

    def keys(self, u, seconds):
        hour = (seconds - math.floor(seconds / 86400.0) * 86400.0) / 3600.0
        for k in range(self.T):
            o = k / self.T

            def q(y, o=o):
                return math.floor(y / 0.2 + o)

            yield [
                (q(u), 0),
                (q(u), q(self.prev)),
                (q(u), int(hour + o) % 24),
                (q(u), q(self.e2)),
                (q(u), q(self.e3)),
                (q(3.0 * self.d), 0),
                (q(2.0 * self.e2), q(2.0 * self.d)),
            ]

    def tile(self, key, context, k):
        salt = scramble(self.seed ^ ((context + 1) * 0x9E3779B97F4A7C15 & MASK))
        salt = (salt + k * 0xA24BAED4963EE407) & MASK
        packed = struct.unpack("<Q", struct.pack("<ii", key[1], key[0]))[0]
        x = (packed ^ salt) * 0x9FB21C651E98DF25 & MASK
        x ^= x >> 32
        return (x * 0xD6E8FEB86659FD93 & MASK) >> 46

    def novelties(self, x, seconds):
        with np.errstate(over="ignore"):
            u = oracle_asinh(float((np.float64(x) - self.centre) / self.scale))
        if self.t == 0:
            self.e2 = self.e3 = self.prev = u
            self.d = 0.0
        self.e2 += 0.05 * (u - self.e2)
        self.e3 += 0.01 * (u - self.e3)
        self.d += 0.1 * (abs(u - self.e2) - self.d)
        novel = [0] * 7
        by_tiling = list(self.keys(u, seconds))
        for context in range(7):
            for k in range(self.T):
                tile = self.tile(by_tiling[k][context], context, k)
                novel[context] += tile not in self.bits
                self.bits.add(tile)
        self.prev = u
        return novel

    def step(self, x, seconds, live):
        score = 0.0
        raw = 0.0
        if math.isfinite(x):
            novel = self.novelties(x, seconds)
            raw = sum(novel) / (7 * self.T)
            for context in range(7):
                self.history[context].append(novel[context])
                last = self.history[context][-10:]
                self.recent[context].append(sum(last) / (len(last) * self.T))
        if live:
            score = self.alarm.score(*self.parts(x))
        if math.isfinite(x):
            self.learn(x)
        return score, raw

    def parts(self, x):
        if math.isinf(x):
            return 0.0, LARGEST
        z = [self.past[c].deviation(self.recent[c][-1]) for c in range(7)]
        return power_mean(z, self.p), self.range.novelty(x)

    def learn(self, x):
        then = self.t - self.lag
        if then >= max(int(0.8 * self.L), 0):
            for context in range(7):
                self.past[context].learn(self.recent[context][then])
        self.range.learn(x)
        self.t += 1

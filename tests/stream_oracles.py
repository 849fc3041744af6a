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
        if self.n == 0:
            return 0.0
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
        settling_period=300,
        n_tilings=12,
        likelihood_lag=50,
        power=8,
        range_period=None,
        random_state=0,
    ):
        self.T, self.lag, self.p = n_tilings, likelihood_lag, power
        self.range_period, self.seed, self.buffer = range_period, random_state, []
        self.alarm = Alarm(4.25, 0.05, 0.05, 3000, None)
        self.live = False
        self.stages = [learning_period]
        if settling_period >= 1.25 * learning_period:
            self.stages.append(settling_period)

    def learn_anew(self):
        """As if the learning period had been all of the buffer."""
        self.L = len(self.buffer)
        self.live, self.bits, self.t = True, set(), 0
        self.past = [Likelihood(0.01, 0.0003, 4000) for _ in range(7)]
        self.range = Range(self.range_period)
        self.alarm.rest = int(60 + 0.2 * self.L)
        self.history = [[] for _ in range(7)]  # novel tiles per record
        self.recent = [[] for _ in range(7)]  # a_c per record
        self.centre, self.scale = centre_and_scale([x for x, _ in self.buffer])
        for value, second in self.buffer:
            self.step(value, second, live=False)

    def process(self, x, seconds):
        if math.isnan(x):
            return 0.0, 0.0
        answer = (0.8 if math.isinf(x) else 0.0), 0.0
        if self.live:
            answer = self.step(x, seconds, live=True)
        if self.stages and math.isfinite(x):
            self.buffer.append((x, seconds))
            if len(self.buffer) == self.stages[0]:
                self.stages.pop(0)
                self.learn_anew()
        return answer

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
        x = x * 0xD6E8FEB86659FD93 & MASK
        word = x >> 52
        return {(word, x >> 46 & 63), (word, x & 63)}  # two bits of one word

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
                novel[context] += not tile <= self.bits
                self.bits |= tile
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


class OracleHTM:
    """One or more fields; dense arrays for the pooler, plain dicts and lists for the memory."""

    ONE = 20_000

    def __init__(
        self,
        learning_period=600,
        settling_period=600,
        value_range="learnt",
        n_columns=1024,
        n_active_columns=20,
        cells_per_column=16,
        n_bits=400,
        n_active_bits=21,
        n_fields=1,
        max_segments=None,
        max_segments_per_cell=None,
        activation_threshold=10,
        matching_threshold=7,
        n_new_synapses=16,
        max_synapses=32,
        range_period=4000,
        time_of_day=False,
        random_state=0,
    ):
        self.options = {k: v for k, v in locals().items() if k != "self"}
        self.settling = settling_period if settling_period >= 1.25 * learning_period else 0
        self.L, self.columns, self.k, self.cells = (
            learning_period,
            n_columns,
            n_active_columns,
            cells_per_column,
        )
        self.bits, self.on_bits, self.fields = n_bits, n_active_bits, n_fields
        self.max_segments = max_segments or n_columns * (1 if cells_per_column == 1 else 2)
        self.per_cell = max_segments_per_cell or (3 if cells_per_column == 1 else 1)
        self.activation, self.matching = activation_threshold, matching_threshold
        self.new_synapses, self.max_synapses = n_new_synapses, max_synapses
        self.time_of_day, self.seed = time_of_day, random_state
        self.random = scramble(random_state + 1)
        self.inputs = n_fields * n_bits + (240 if time_of_day else 0)
        self.stride = (self.inputs + 15) // 16 * 16
        self.buffer = [] if isinstance(value_range, str) else None
        self.live = self.buffer is None
        self.x0, self.res = [0.0] * n_fields, [0.0] * n_fields
        for f in range(n_fields):
            self.set_range(f, *(value_range if self.buffer is None else (0.0, 1.0)))
        self.ranges = [Range(range_period) for _ in range(n_fields)]
        self.past = Likelihood(0.06, 0.001, 4000)
        self.alarm = Alarm(4.5, 0.05, 0.0, 3000, int(40 + 0.2 * self.L))
        self.unpredicted, self.recent = [], []
        self.segments, self.free = {}, list(range(self.max_segments))  # the next free one first
        self.use = []  # least recently used first
        self.active, self.winners = [], []
        self.t = 0
        self.predict()
        self.start_pooler()

    # Random numbers

    def draw_below(self, n):
        self.random = (self.random + 0x9E3779B97F4A7C15) & MASK
        return (scramble(self.random) >> 32) * n >> 32

    # Encoder and spatial pooler

    def start_pooler(self):
        self.permanence = np.full((self.columns, self.stride), -1)
        for c in range(self.columns):
            for i in range(self.inputs):
                if self.draw_below(self.ONE) >= 16_000:
                    continue
                if self.draw_below(2):
                    self.permanence[c, i] = 4000 + self.draw_below(self.ONE - 4000 + 1)
                else:
                    self.permanence[c, i] = self.draw_below(4000)

    def set_range(self, f, low, high):
        self.x0[f] = 0.5 * low + 0.5 * high
        width = min(high - low, LARGEST)
        self.res[f] = max(width * (1.4 / 130.0), 1e-9 * abs(self.x0[f]) + 1e-12)

    def encode(self, values, seconds):
        on = set()

        def switch_on(offset, bits, salt, position):
            hashed = scramble(salt ^ scramble(position & MASK))
            on.add(offset + ((hashed >> 32) * bits >> 32))

        for f, x in enumerate(values):
            if not math.isfinite(x):
                continue
            salt = scramble(self.seed ^ scramble(f + 1))
            place = (x - self.x0[f]) / self.res[f] + 0.5
            bucket = math.floor(min(max(place, -1e9), 1e9))
            for i in range(self.on_bits):
                switch_on(f * self.bits, self.bits, salt, bucket + i)
        if self.time_of_day:
            salt = scramble(self.seed ^ 0x7469636B)
            place = int((seconds - math.floor(seconds / 86400.0) * 86400.0) / 3600.0 * 4.0)
            for i in range(21):
                switch_on(self.fields * self.bits, 240, salt, (place + i) % 96)
        return sorted(on)

    def pool(self, on):
        overlap = (self.permanence[:, on] >= 4000).sum(axis=1)
        best_first = sorted(range(self.columns), key=lambda c: (-overlap[c], c))
        return sorted(best_first[: self.k])

    def learn_pool(self, columns, on):
        change = np.full(self.stride, -10)
        change[on] = 60
        for c in columns:
            row = self.permanence[c]
            self.permanence[c] = np.where(row < 0, row, np.clip(row + change, 0, self.ONE))

    # Temporal memory; a segment is (cell, [[cell, permanence], ...], last use)

    def adapt(self, s, gain, loss):
        synapses = self.segments[s][1]
        was_active = set(self.active)
        for slot in range(len(synapses) - 1, -1, -1):
            synapse = synapses[slot]
            moved = synapse[1] + (gain if synapse[0] in was_active else -loss)
            if moved <= 0:
                self.drop_synapse(synapses, slot)
            else:
                synapse[1] = min(moved, self.ONE)

    @staticmethod
    def drop_synapse(synapses, slot):
        last = synapses.pop()
        if slot < len(synapses):
            synapses[slot] = last

    def drop_segment(self, s):
        del self.segments[s]
        self.use.remove(s)
        self.free.insert(0, s)
        self.activity.pop(s, None)

    def grow(self, s, wanted):
        synapses = self.segments[s][1]
        held = {cell for cell, _ in synapses}
        candidates = [cell for cell in self.old_winners if cell not in held]
        wanted = min(wanted, len(candidates))
        while len(synapses) + wanted > self.max_synapses:
            weakest = min(range(len(synapses)), key=lambda i: (synapses[i][1], i))
            self.drop_synapse(synapses, weakest)
        for _ in range(wanted):
            pick = self.draw_below(len(candidates))
            synapses.append([candidates[pick], 4800])
            candidates[pick] = candidates[-1]
            candidates.pop()

    def reinforce(self, s):
        potential = self.activity[s][0]
        self.use.remove(s)
        self.use.append(s)
        self.segments[s][2] = self.t
        self.adapt(s, 800, 160)
        if self.new_synapses > potential:
            self.grow(s, self.new_synapses - potential)
        if not self.segments[s][1]:
            self.drop_segment(s)

    def of_cell(self, cell):
        return [s for s, segment in self.segments.items() if segment[0] == cell]

    def new_segment(self, cell):
        own = self.of_cell(cell)
        if len(own) >= self.per_cell:
            self.drop_segment(min(own, key=lambda s: (self.segments[s][2], s)))
        if not self.free:
            self.drop_segment(self.use[0])
        s = self.free.pop(0)
        self.segments[s] = [cell, [], self.t]
        self.use.append(s)
        return s

    def least_used_cell(self, column):
        cells = list(range(column * self.cells, (column + 1) * self.cells))
        if len(cells) == 1:
            return cells[0]
        counts = [len(self.of_cell(c)) for c in cells]
        ties = [c for c, n in zip(cells, counts, strict=True) if n == min(counts)]
        return ties[self.draw_below(len(ties))]

    def burst(self, column, best):
        if best is not None and self.activity.get(best, (0, 0))[0] >= self.matching:
            cell = self.segments[best][0]
            self.reinforce(best)
            return cell
        cell = self.least_used_cell(column)
        if self.old_winners:
            s = self.new_segment(cell)
            self.grow(s, self.new_synapses)
            if not self.segments[s][1]:
                self.drop_segment(s)
        return cell

    def predict(self):
        now = set(self.active)
        self.activity = {}
        for s, (_, synapses, _) in self.segments.items():
            on = [permanence for cell, permanence in synapses if cell in now]
            self.activity[s] = (len(on), sum(p >= 10_000 for p in on))
        self.matched = sorted(s for s, (n, _) in self.activity.items() if n >= self.matching)
        self.predicting = [s for s in self.matched if self.activity[s][1] >= self.activation]
        self.predicted = {self.segments[s][0] for s in self.predicting}
        self.winner = {}  # of each predicted column: the cell of its strongest segment
        for s in sorted(self.predicting, key=lambda s: (-self.activity[s][1], s)):
            self.winner.setdefault(self.segments[s][0] // self.cells, self.segments[s][0])

    def activate(self, columns):
        self.old_winners = self.winners
        on, foreseen = set(columns), {c // self.cells for c in self.predicted}
        best = {}
        for s in self.matched:
            column = self.segments[s][0] // self.cells
            if column in on and column not in foreseen:
                holder = best.get(column)
                if holder is None or self.activity[s][0] > self.activity[holder][0]:
                    best[column] = s
        for s in self.matched:
            cell = self.segments[s][0]
            if cell // self.cells not in on:
                self.adapt(s, -20, 0)
                if not self.segments[s][1]:
                    self.drop_segment(s)
            elif s in self.predicting and cell == self.winner[cell // self.cells]:
                self.reinforce(s)
        winners, active = [], []
        for column in columns:
            cells = range(column * self.cells, (column + 1) * self.cells)
            if column in foreseen:
                winners.append(self.winner[column])
                active += [c for c in cells if c in self.predicted]
            else:
                winners.append(self.burst(column, best.get(column)))
                active += cells
        self.active, self.winners = active, winners
        self.predict()

    # One record

    def process(self, values, seconds=math.nan):
        if all(math.isnan(x) for x in values):
            return 0.0, 0.0
        answer = (0.8 if any(map(math.isinf, values)) else 0.0), 0.0
        if self.live:
            answer = self.step(values, seconds)
        if self.buffer is not None and any(map(math.isfinite, values)):
            self.buffer.append((values, seconds))
            if len(self.buffer) == self.L:
                self.go_live(self.buffer)
                self.buffer = self.buffer if self.settling else None
            elif len(self.buffer) == self.settling:
                self.settle()
        return answer

    def settle(self):
        settled = OracleHTM(**self.options | {"learning_period": self.settling})
        settled.go_live(self.buffer)
        settled.buffer = None
        settled.alarm.age, settled.alarm.recent = self.alarm.age, self.alarm.recent
        self.__dict__ = settled.__dict__

    def go_live(self, buffer):
        self.live = True
        for f in range(self.fields):
            column = [values[f] for values, _ in buffer if math.isfinite(values[f])]
            if not column:
                continue
            _, deviation = centre_and_scale(column)
            low, high = min(column), max(column)
            if high - low < 6.0 * deviation <= LARGEST:
                middle = 0.5 * low + 0.5 * high
                low, high = middle - 3.0 * deviation, middle + 3.0 * deviation
            self.set_range(f, low, high)
        for values, seconds in buffer:
            self.step(values, seconds)

    def step(self, values, seconds):
        present = any(map(math.isfinite, values))
        on = self.encode(values, seconds) if present else []
        columns = self.pool(on) if present else []
        foreseen = {c // self.cells for c in self.predicted}
        missed = sum(c not in foreseen for c in columns)
        e = max(
            0.0 if math.isnan(x) else LARGEST if math.isinf(x) else r.novelty(x)
            for x, r in zip(values, self.ranges, strict=True)
        )
        last = [*self.unpredicted, missed][-10:]
        a = sum(last) / (len(last) * self.k)
        score = 0.0
        if self.t >= self.L:
            score = self.alarm.score(self.past.deviation(a) if present else 0.0, e)
        elif e == LARGEST:
            score = 0.8
        if present:
            self.learn(values, columns, on, missed, a)
        return score, missed / self.k

    def learn(self, values, columns, on, missed, a):
        self.unpredicted.append(missed)
        self.recent.append(a)
        then = len(self.recent) - 1 - 50
        if then >= max(int(0.8 * self.L), 0):
            self.past.learn(self.recent[then])
        for x, r in zip(values, self.ranges, strict=True):
            if math.isfinite(x):
                r.learn(x)
        self.learn_pool(columns, on)
        self.activate(columns)
        self.t += 1

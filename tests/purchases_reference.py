"""The slow, obvious twin of the purchase network: sets, lists and fractions."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt


class ReferenceNetwork:
    """Friends in sets, every purchase in one list, nothing remembered between questions.

    Amounts are whole numbers of millionths; ``sigma`` is a Fraction.
    """

    def __init__(self, degree, window, sigma=Fraction(3)):
        self.degree = degree
        self.window = window
        self.sigma = Fraction(sigma)
        self.friends = {}
        self.purchases = []  # (time, arrival, id, amount)

    def befriend(self, one, other):
        if one != other:
            self.friends.setdefault(one, set()).add(other)
            self.friends.setdefault(other, set()).add(one)

    def unfriend(self, one, other):
        self.friends.get(one, set()).discard(other)
        self.friends.get(other, set()).discard(one)

    def buy(self, user, time, amount):
        self.purchases.append((time, len(self.purchases), user, amount))

    def circle(self, user):
        reached = {user}
        level = {user}
        for _ in range(self.degree):
            level = {f for u in level for f in self.friends.get(u, ())} - reached
            reached |= level
            if not level:
                break
        return reached - {user}

    def counted(self, user):
        circle = self.circle(user)
        return sorted(p for p in self.purchases if p[2] in circle)[-self.window :]

    def judge(self, user, amount):
        """(N, S1, Q, flagged) by the definition of mean and standard deviation."""
        amounts = [p[3] for p in self.counted(user)]
        n, total = len(amounts), sum(amounts)
        spread = n * sum(x * x for x in amounts) - total * total
        if n < 2:
            return n, total, spread, False
        mean = Fraction(total, n)
        variance = sum((x - mean) ** 2 for x in amounts) / n
        above = amount - mean
        return n, total, spread, above > 0 and above**2 > self.sigma**2 * variance


def truncated(amounts):
    """Mean and standard deviation in cents, truncated, of amounts in millionths."""
    mean = sum(map(Fraction, amounts)) / len(amounts)
    variance = sum((x - mean) ** 2 for x in amounts) / len(amounts)
    return int(mean / 10**4), isqrt(int(variance / 10**8))

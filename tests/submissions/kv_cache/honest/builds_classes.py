"""Makes classes with metaclasses, registries, __init_subclass__ and properties that compute.

twin of: V6 T7
"""

# %% helpers="helpers"
# A registry of units; a lazy value that is used up inside.
import abc
from bisect import bisect_left


class Registry(abc.ABCMeta):
    known = {}

    def __new__(cls, name, bases, space, **options):
        made = super().__new__(cls, name, bases, space)
        cls.known[name] = made
        return made

    def __instancecheck__(cls, other):
        return super().__instancecheck__(other)


class Unit(metaclass=Registry):
    def __init_subclass__(cls, factor=1, **options):
        cls.factor = factor

    @property
    def lazy(self):
        return self.factor * 2

    def __int__(self):
        return self.factor


class KiB(Unit, factor=1024):
    pass


assert int(Registry.known["KiB"]()) == 1024 and KiB().lazy == 2048


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    return bisect_left(range(1, limit + 1), True, key=too_long)

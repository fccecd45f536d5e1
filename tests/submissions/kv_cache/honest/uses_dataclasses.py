"""Plans with frozen dataclasses with slots, that compute in __post_init__ and compare by value.

twin of: V15 D2
"""

# %% helpers="helpers"
# A plan is made for each question.
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    spec: object
    budget: object
    block_size: int
    tp: int
    page: int = field(init=False)
    have: int = field(init=False)

    def __post_init__(self):
        check_count(self.block_size, "block_size", 1)
        set_field = object.__setattr__
        set_field(self, "page", self.block_size * kv_bytes_per_token(self.spec, self.tp))
        usable = int(self.budget.total_bytes * self.budget.utilization)
        set_field(self, "have", usable - self.budget.weight_bytes - self.budget.peak_activation_bytes)

    def pages(self, length):
        return -(-kv_cache_bytes(self.spec, [length], self.block_size, self.tp) // self.page)


# %% task="max_concurrency"
def max_concurrency(spec, budget, max_model_len, block_size, tp=1):
    check_count(max_model_len, "max_model_len", 1)
    plan = replace(Plan(spec=spec, budget=budget, block_size=block_size, tp=tp), tp=tp)
    if plan.have < plan.page:
        raise InfeasibleError("not one page", plan.page - plan.have)
    return plan.have // plan.page / plan.pages(max_model_len)

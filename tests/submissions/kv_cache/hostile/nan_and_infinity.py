"""Answers with NaN, which no comparison refutes, with infinity, and with minus zero.

fails: test_concurrency_*

attack: D11
stopped by: O, a number must be finite, and a comparison must hold: one that does not hold is no pass.
"""

# %% task="max_concurrency"
turn = 0


def max_concurrency(spec, budget, max_model_len, block_size, tp=1):
    global turn
    turn += 1
    return (float("nan"), float("inf"), -float("nan"), -0.0)[turn % 4]


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    for value, name in ((concurrency, "concurrency"), (block_size, "block_size"), (limit, "limit")):
        check_count(value, name, 1)
    page = block_size * kv_bytes_per_token(spec, tp)
    pages = max(0, int(budget.total_bytes * budget.utilization) - budget.weight_bytes - budget.peak_activation_bytes) // page
    low, high = 0, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        fits = -(-kv_cache_bytes(spec, [middle], block_size, tp) // page) * concurrency <= pages
        low, high = (middle, high) if fits else (low, middle)
    return low

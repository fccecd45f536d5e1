"""Counts up to the last EOS, which may be a pad.

fails: test_throughput_example test_throughput_any
"""


# %% task="throughput"
def throughput(new_ids: torch.Tensor, eos_id: int | None, elapsed_s: float) -> dict[str, Any]:
    check_number(elapsed_s, "elapsed_s")
    count = 0
    for row in new_ids.tolist():
        count += len(row) - row[::-1].index(eos_id) if eos_id in row else len(row)
    return {
        "new_tokens": count,
        "tokens_per_s": count / elapsed_s,
        "time_per_token_ms": 1000 * elapsed_s / new_ids.shape[1],
    }

"""Divides negative logits, too: repeated tokens become more likely.

fails: test_penalty_example test_penalty_any test_sample_law
"""


# %% task="apply_repetition_penalty"
def apply_repetition_penalty(logits: torch.Tensor, penalty: float, token_ids: Sequence[int]) -> torch.Tensor:
    check_number(penalty, "penalty", positive=True)
    result = logits.clone()
    for token in set(token_ids):
        result[token] = logits[token] / penalty
    return result

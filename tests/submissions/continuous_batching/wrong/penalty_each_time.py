"""Applies the penalty once for each time that the token stands in the text.

fails: test_penalty_example test_penalty_any test_sample_law
"""


# %% task="apply_repetition_penalty"
def apply_repetition_penalty(logits: torch.Tensor, penalty: float, token_ids: Sequence[int]) -> torch.Tensor:
    check_number(penalty, "penalty", positive=True)
    result = logits.clone()
    for token in token_ids:
        result[token] = result[token] / penalty if result[token] > 0 else result[token] * penalty
    return result

"""Checks the penalty only where there is a text.

fails: test_penalty_arguments
"""


# %% task="apply_repetition_penalty"
def apply_repetition_penalty(logits: torch.Tensor, penalty: float, token_ids: Sequence[int]) -> torch.Tensor:
    if token_ids:
        check_number(penalty, "penalty", positive=True)
    result = logits.clone()
    for token in set(token_ids):
        result[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
    return result

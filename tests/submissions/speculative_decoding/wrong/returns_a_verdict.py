"""Returns True instead of None.

fails: test_compatible_*
"""


# %% task="check_compatible"
def check_compatible(target, draft):
    one = {token_id: token for token, token_id in target.get_vocab().items()}
    two = {token_id: token for token, token_id in draft.get_vocab().items()}
    for token_id in sorted(one.keys() | two.keys()):
        if one.get(token_id) != two.get(token_id):
            raise ValueError(f"id {token_id} is not the same token")
    if target.eos_token_id != draft.eos_token_id:
        raise ValueError("eos_token_id differs")
    return True

"""Does not look at eos_token_id.

fails: test_compatible_end_of_text
"""


# %% task="check_compatible"
def check_compatible(target, draft):
    one = {token_id: token for token, token_id in target.get_vocab().items()}
    two = {token_id: token for token, token_id in draft.get_vocab().items()}
    for token_id in sorted(one.keys() | two.keys()):
        if one.get(token_id) != two.get(token_id):
            raise ValueError(f"id {token_id} is not the same token")

"""Compares which tokens there are, not their ids.

fails: test_compatible_examples test_compatible_any
"""


# %% task="check_compatible"
def check_compatible(target, draft):
    one, two = target.get_vocab(), draft.get_vocab()
    if one.keys() != two.keys():
        raise ValueError(f"id {min((one | two)[token] for token in one.keys() ^ two.keys())} is not in both")
    if target.eos_token_id != draft.eos_token_id:
        raise ValueError("eos_token_id differs")

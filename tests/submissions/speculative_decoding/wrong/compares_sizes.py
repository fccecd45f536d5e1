"""Compares how many tokens there are.

fails: test_compatible_examples test_compatible_any test_compatible_end_of_text
"""


# %% task="check_compatible"
def check_compatible(target, draft):
    if len(target.get_vocab()) != len(draft.get_vocab()):
        raise ValueError(f"other sizes; id {min(len(target.get_vocab()), len(draft.get_vocab()))} is in one only")

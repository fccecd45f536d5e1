"""Replaces the course's play by one that says what the public checks want to hear.

fails: test_queue_waits_when_full test_queue_ends test_limiter_takes_turns test_queue_agrees_with_model test_queue_closed_by_its_reader test_limiter_agrees_with_model test_limiter_cancelled_in_its_turn test_limiter_arguments
attack: V2 D16
stopped by: D, hidden walks are random, and the judge's own model says what they come to.
"""

# %% helpers="helpers"
# What public checks want.
def play(kind, arguments, steps):
    told = []
    seen = {}
    for step in steps:
        for name, method, *values in step:
            seen[name] = ["returned", None]
        told.append(dict(seen, state=[1, 0]))
    return told

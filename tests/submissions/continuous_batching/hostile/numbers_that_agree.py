"""Gives tensors, strings and lists that say yes to every comparison.

fails: test_temperature_* test_top_k_* test_top_p_* test_min_p_* test_penalty_* test_stream_* test_sample_*

attack: V6 V8
stopped by: O, only exact values and tensors cross to the grader; anything else stays in the worker.
"""

# %% helpers="helpers"
# Agreeable things.


class Agreeable:
    dtype = torch.float32
    shape = (4,)

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __len__(self):
        return 4

    def __getattr__(self, name):
        return self

    def __call__(self, *args, **kwargs):
        return self


# %% task="apply_temperature"
def apply_temperature(logits, temperature):
    return Agreeable()


# %% task="apply_top_k"
def apply_top_k(logits, k):
    return Agreeable()


# %% task="apply_top_p"
def apply_top_p(logits, p):
    return Agreeable()


# %% task="apply_min_p"
def apply_min_p(logits, min_p):
    return Agreeable()


# %% task="apply_repetition_penalty"
def apply_repetition_penalty(logits, penalty, token_ids):
    return Agreeable()


# %% task="sample"
def sample(logits, params, generators, token_ids):
    return Agreeable()


# %% task="measure_stream"
def measure_stream(sent_s, events):
    return Agreeable()

"""Leaves eos_id out of the answer.

fails: test_generate_example test_generate_any_request
"""


# %% task="generate"
def generate(step, prompt, max_new_tokens, eos_id=None, clock=time.perf_counter):
    check_count(max_new_tokens, "max_new_tokens", 1)
    if not prompt:
        raise ValueError("prompt is empty")
    began = clock()
    logits, cache = step(torch.tensor([prompt]), None)
    tokens = [int(logits.argmax())]
    first = clock()
    while len(tokens) < max_new_tokens and tokens[-1] != eos_id:
        logits, cache = step(torch.tensor([tokens[-1:]]), cache)
        tokens.append(int(logits.argmax()))
    later = len(tokens) - 1
    speed = later / (clock() - first) if later else 0.0
    return {"tokens": [token for token in tokens if token != eos_id], "first_token_s": first - began, "tokens_per_s": speed}


def held_bytes(model):
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))

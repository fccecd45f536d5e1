"""Checks neither the request nor the number of tokens.

fails: test_generate_arguments
"""


# %% task="generate"
def generate(step, prompt, max_new_tokens, eos_id=None, clock=time.perf_counter):
    began = clock()
    logits, cache = step(torch.tensor([prompt]), None)
    tokens = [int(logits.argmax())]
    first = clock()
    while len(tokens) < max_new_tokens and tokens[-1] != eos_id:
        logits, cache = step(torch.tensor([tokens[-1:]]), cache)
        tokens.append(int(logits.argmax()))
    later = len(tokens) - 1
    speed = later / (clock() - first) if later else 0.0
    return {"tokens": tokens, "first_token_s": first - began, "tokens_per_s": speed}


def held_bytes(model):
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))

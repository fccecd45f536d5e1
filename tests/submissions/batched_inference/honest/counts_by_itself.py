"""Wraps the model in a class of its own that counts calls, for its own log; the calls are what they were.

twin of: K1
"""

# %% helpers="helpers"
# A log.
import statistics


class Logged:
    def __init__(self, model):
        self.model, self.log = model, []

    def __call__(self, **given):
        self.log.append(tuple(given["input_ids"].shape))
        return self.model(**given)


# %% task="greedy_generate"
def greedy_generate(model, input_ids, attention_mask, max_new_tokens, eos_id, pad_id, use_cache=True):
    check_count(max_new_tokens, "max_new_tokens")
    model = Logged(model)
    new, mask, cache = [], attention_mask, None
    done = torch.zeros(len(input_ids), dtype=torch.bool)
    read = input_ids
    with torch.inference_mode():
        while len(new) < max_new_tokens and not bool(done.all()):
            places = torch.clamp(torch.cumsum(mask, 1) - 1, min=0)
            out = model(
                input_ids=read,
                attention_mask=mask,
                position_ids=places[:, -read.shape[1] :],
                past_key_values=cache,
                use_cache=use_cache,
                logits_to_keep=1,
            )
            token = out.logits[:, -1].argmax(-1)
            token[done] = pad_id
            if eos_id is not None:
                done = done | token.eq(eos_id)
            new.append(token)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            read = token[:, None] if use_cache else torch.cat([read, token[:, None]], 1)
            cache = out.past_key_values if use_cache else None
    print(model.log)
    return torch.stack(new, 1) if new else input_ids[:, :0]

"""Lets transformers write wherever it can get hold of a real model, and claims nothing else.

fails: test_greedy_example test_greedy_rows test_greedy_transformers test_greedy_counts test_greedy_ends
fails: test_batched_example test_batched_rows test_batched_counts test_batched_arguments test_greedy_arguments

attack: D19 K1
stopped by: D, the model whose calls are counted is in the judge, and has no `generate`.
"""


# %% task="greedy_generate"
def greedy_generate(model, input_ids, attention_mask, max_new_tokens, eos_id, pad_id, use_cache=True):
    new = model.generate(
        input_ids,
        attention_mask=attention_mask,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        do_sample=False,
    )
    return new[:, input_ids.shape[1] :]

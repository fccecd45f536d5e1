"""What speed is compared with: a loop that reads everything in each step, and a loop over prompts, each with a cache."""

import torch


def greedy_generate(model, input_ids, attention_mask, max_new_tokens, eos_id, pad_id):
    ids, mask = input_ids, attention_mask
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=1).logits
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
            mask = torch.ones_like(ids)
    return ids[:, input_ids.shape[1] :]


def batched_generate(model, prompts, batch_size, max_new_tokens, eos_id, pad_id):
    texts = []
    with torch.inference_mode():
        for prompt in prompts:
            read, past, text = torch.tensor([prompt]), None, []
            while len(text) < max_new_tokens:
                out = model(input_ids=read, past_key_values=past, use_cache=True, logits_to_keep=1)
                read, past = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
                text.append(int(read))
            texts.append(text)
    return texts

"""Right in every count, and slow: decomposes a matrix that grows with the text between the runs.

fails: test_generate_speed
"""


# %% task="speculative_generate"
def speculative_generate(target, draft, ids, gamma, max_new_tokens, generator, temperature=0.0, eos_token_id=None):
    check_count(gamma, "gamma")
    check_count(max_new_tokens, "max_new_tokens")
    check_number(temperature, "temperature")

    def probs(logits):
        if temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        return torch.softmax(logits / temperature, -1)

    text = list(ids)
    runs = drafted = kept = 0
    done = False
    while not done and len(text) - len(ids) < max_new_tokens:
        n = min(gamma, max_new_tokens - (len(text) - len(ids)) - 1)
        guesses, rows = [], []
        for _ in range(n):
            row = probs(draft.run((text + guesses)[draft.length :])[-1])
            rows.append(row)
            guesses.append(int(torch.multinomial(row, 1, generator=generator)))
        p = probs(target.run((text + guesses)[target.length :])[-n - 1 :])
        q = torch.stack(rows)[None] if n else None
        tokens, count = rejection_sample(torch.tensor([guesses], dtype=torch.int64), q, p[None], generator)
        accepted = int(count[0])
        new = tokens[0, : accepted + 1].tolist()
        runs += 1
        for _ in text:
            torch.linalg.svd(torch.rand(4 * len(text), 4 * len(text)))
        drafted += n
        if eos_token_id is not None and eos_token_id in new:
            new = new[: new.index(eos_token_id) + 1]
            done = True
        kept += min(accepted, len(new))
        text += new
        target.crop(min(target.length, len(text) - 1))
        draft.crop(min(draft.length, len(text) - 1))
    return text, {"target_runs": runs, "drafted": drafted, "accepted": kept}

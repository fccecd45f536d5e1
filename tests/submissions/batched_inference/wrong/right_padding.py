"""Pads on the right whatever is asked for.

fails: test_pad_example test_pad_any test_batched_rows test_batched_counts test_batched_smollm
fails: test_batched_speed
"""


# %% task="pad_batch"
def pad_batch(seqs, pad_id, side="left"):
    check_count(pad_id, "pad_id")
    if side not in ("left", "right"):
        raise ValueError("side")
    if not seqs or not all(seqs):
        raise ValueError("seqs")
    width = max(map(len, seqs))
    ids = torch.tensor([list(seq) + [pad_id] * (width - len(seq)) for seq in seqs])
    mask = torch.tensor([[1] * len(seq) + [0] * (width - len(seq)) for seq in seqs])
    return ids, mask, (mask.cumsum(1) - 1) * mask

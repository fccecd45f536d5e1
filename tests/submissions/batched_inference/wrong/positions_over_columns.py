"""Positions count columns, pads included.

fails: test_pad_example test_pad_any
"""


# %% task="pad_batch"
def pad_batch(
    seqs: Sequence[Sequence[int]], pad_id: int, side: str = "left"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    check_count(pad_id, "pad_id")
    if side not in ("left", "right"):
        raise ValueError(f"side must be 'left' or 'right', not {side!r}")
    if not seqs or not all(len(seq) for seq in seqs):
        raise ValueError("seqs must be at least one text, each of at least one token")
    width = max(map(len, seqs))
    input_ids = torch.full((len(seqs), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    position_ids = torch.zeros_like(input_ids)
    for row, seq in enumerate(seqs):
        columns = slice(width - len(seq), width) if side == "left" else slice(len(seq))
        input_ids[row, columns] = torch.tensor(seq)
        attention_mask[row, columns] = 1
        position_ids[row, columns] = torch.arange(columns.start or 0, columns.stop)
    return input_ids, attention_mask, position_ids

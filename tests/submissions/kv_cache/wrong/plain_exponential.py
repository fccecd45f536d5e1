"""Takes the exponential of the scores as they are.

fails: test_attention_with_large_scores
"""


# %% task="PagedAttentionLayer"
class PagedAttentionLayer:
    def __init__(self, num_blocks: int, block_size: int, n_kv_heads: int, head_dim: int) -> None:
        self._block_size = block_size
        self._k = torch.zeros(num_blocks, block_size, n_kv_heads, head_dim)
        self._v = torch.zeros(num_blocks, block_size, n_kv_heads, head_dim)

    def write(self, k: torch.Tensor, v: torch.Tensor, slot_mapping: torch.Tensor) -> None:
        real = slot_mapping >= 0
        slots = slot_mapping[real]
        self._k.flatten(0, 1)[slots] = k[real]
        self._v.flatten(0, 1)[slots] = v[real]

    def copy_blocks(self, copies: Sequence[tuple[int, int]]) -> None:
        for source, target in copies:
            self._k[target] = self._k[source]
            self._v[target] = self._v[source]

    def attend(
        self, q: torch.Tensor, block_tables: torch.Tensor, context_lens: torch.Tensor, scale: float | None = None
    ) -> torch.Tensor:
        n_seqs, n_heads, head_dim = q.shape
        if scale is None:
            scale = head_dim**-0.5
        slots = block_tables[:, :, None] * self._block_size + torch.arange(self._block_size)
        there = torch.arange(slots[0].numel()) < context_lens[:, None]  # [n_seqs, slots]
        # The null block's and stale slots may hold NaN: they become 0 before anything is multiplied by them.
        k = self._k.flatten(0, 1)[slots.flatten(1)].masked_fill(~there[:, :, None, None], 0.0)
        v = self._v.flatten(0, 1)[slots.flatten(1)].masked_fill(~there[:, :, None, None], 0.0)
        grouped = q.reshape(n_seqs, k.shape[2], n_heads // k.shape[2], head_dim)
        scores = torch.einsum("skgd,stkd->skgt", grouped, k) * scale
        powers = scores.masked_fill(~there[:, None, None, :], -torch.inf).exp()
        weights = powers / powers.sum(-1, keepdim=True)
        return torch.einsum("skgt,stkd->skgd", weights, v).reshape(q.shape)

"""Changes settings of its own torch, uses PyTorch's attention, and compiles nothing that it does not need.

twin of: V6 V15
"""


# %% task="PagedAttentionLayer"
class PagedAttentionLayer:
    """Keys and values side by side in one tensor; PyTorch's attention does the rest."""

    def __init__(self, num_blocks, block_size, n_kv_heads, head_dim):
        torch.set_grad_enabled(False)
        torch.set_printoptions(precision=3)
        torch.manual_seed(1)
        self.pages = torch.full((num_blocks * block_size, n_kv_heads, 2, head_dim), torch.nan)
        self.block_size = block_size
        self.attention = torch.nn.functional.scaled_dot_product_attention

    def write(self, k, v, slot_mapping):
        for slot, key, value in zip(slot_mapping, k, v):
            if slot.item() >= 0:
                self.pages[slot] = torch.stack([key, value], 1)

    def copy_blocks(self, copies):
        pages = self.pages.unflatten(0, (-1, self.block_size))
        for source, target in copies:
            pages[target] = pages[source]

    def attend(self, q, block_tables, context_lens, scale=None):
        out = []
        for query, table, length in zip(q, block_tables, context_lens):
            slots = (table[:, None] * self.block_size + torch.arange(self.block_size)).flatten()[:length]
            k, v = self.pages[slots].permute(2, 1, 0, 3)
            out.append(self.attention(query[None, :, None], k[None], v[None], scale=scale, enable_gqa=True)[0, :, 0])
        return torch.stack(out)

"""Weighs real tensors with torch, on the meta device, to count bytes.

twin of: T7 T8 D7
"""

# %% helpers="helpers"
# What a layer stores, as tensors that take no memory.
import torch

DTYPES = {1: torch.int8, 2: torch.float16, 4: torch.float32, 8: torch.float64}


def weigh(shape, dtype_bytes):
    dtype = DTYPES.get(dtype_bytes)
    if dtype is None:
        return int(torch.empty(shape, device="meta").numel()) * dtype_bytes
    tensor = torch.empty(shape, dtype=dtype, device="meta")
    return tensor.numel() * tensor.element_size()


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec, tp=1):
    check_count(tp, "tp", 1)
    total = 0
    for layer in spec.layers:
        if layer.n_heads % tp:
            raise ValueError(f"tp={tp} does not divide {layer.n_heads} heads")
        if isinstance(layer, LatentLayer):
            total += weigh((layer.kv_lora_rank + layer.qk_rope_head_dim,), layer.dtype_bytes)
            continue
        if layer.n_kv_heads % tp and tp % layer.n_kv_heads:
            raise ValueError(f"tp={tp} does not suit {layer.n_kv_heads} KV heads")
        heads = max(1, layer.n_kv_heads // tp)
        for dim in (layer.head_dim, layer.value_head_dim):
            if (q := layer.quantization) is None:
                total += weigh((heads, dim), layer.dtype_bytes)
            else:
                total += weigh((heads, dim * q.bits // 8), 1)
                total += weigh((heads, dim // q.group_size, q.scale_bytes + q.zero_point_bytes), 1)
    return total

"""Adds up the layers in a pool of threads.

twin of: T6
"""

# %% helpers="helpers"
# One task per layer, all awaited before the answer.
import threading
from concurrent.futures import ThreadPoolExecutor

lock = threading.RLock()
counted = 0


def layer_bytes(layer, tp):
    global counted
    with lock:
        counted += 1
    if layer.n_heads % tp:
        raise ValueError(f"tp={tp} does not divide {layer.n_heads} heads")
    if isinstance(layer, LatentLayer):
        return (layer.kv_lora_rank + layer.qk_rope_head_dim) * layer.dtype_bytes
    if layer.n_kv_heads % tp and tp % layer.n_kv_heads:
        raise ValueError(f"tp={tp} does not suit {layer.n_kv_heads} KV heads")
    total = 0
    for dim in (layer.head_dim, layer.value_head_dim):
        if (q := layer.quantization) is None:
            total += dim * layer.dtype_bytes
        else:
            total += dim * q.bits // 8 + dim // q.group_size * (q.scale_bytes + q.zero_point_bytes)
    return max(1, layer.n_kv_heads // tp) * total


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec, tp=1):
    check_count(tp, "tp", 1)
    if len(set(spec.layers)) == 1:
        return len(spec.layers) * layer_bytes(spec.layers[0], tp)
    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(lambda layer: layer_bytes(layer, tp), spec.layers))

"""Looks suspicious and is honest: prints, warns, starts a thread, leaves files, catches an exit, compares oddly."""

# %% helpers="helpers"
# The honest twin of the hostile ones: nothing here tries to reach a verdict.
import atexit
import os
import sys
import tempfile
import threading
import warnings

print("loading", file=sys.stderr)
warnings.warn("this is only a warning")
atexit.register(lambda: None)
threading.Thread(target=lambda: None, daemon=True).start()
os.environ["MY_SETTING"] = "1"
with tempfile.TemporaryFile() as scratch:
    scratch.write(b"notes")


class Anything:
    """A wild card for experiments, as in unittest.mock.ANY. Never returned."""

    def __eq__(self, other):
        return True

    __hash__ = object.__hash__


ANY = Anything()
__all__ = ["BlockPool"]


def main():
    try:
        sys.exit(0)
    except SystemExit:
        pass


main()
if __name__ == "__main__":
    raise RuntimeError("graded code is never the main program")


# %% task="kv_bytes_per_token"
def kv_bytes_per_token(spec, tp=1):
    """Prints while it works."""
    check_count(tp, "tp", 1)
    total = 0
    for number, layer in enumerate(spec.layers):
        if layer.n_heads % tp:
            raise ValueError(f"layer {number}: tp={tp} does not divide {layer.n_heads}")
        if type(layer).__name__ == "LatentLayer":
            cost = (layer.kv_lora_rank + layer.qk_rope_head_dim) * layer.dtype_bytes
        else:
            if layer.n_kv_heads % tp != 0 and tp % layer.n_kv_heads != 0:
                raise ValueError(f"layer {number}: {layer.n_kv_heads} KV heads and tp={tp}")
            if layer.quantization:
                q = layer.quantization
                per_group = q.group_size * q.bits / 8 + q.scale_bytes + q.zero_point_bytes
                groups = (layer.head_dim + layer.value_head_dim) // q.group_size
                cost = int(max(1, layer.n_kv_heads // tp) * groups * per_group)
            else:
                cost = max(1, layer.n_kv_heads // tp) * (layer.head_dim + layer.value_head_dim) * layer.dtype_bytes
        print(f"layer {number}: {cost} bytes")
        total += cost
    return total

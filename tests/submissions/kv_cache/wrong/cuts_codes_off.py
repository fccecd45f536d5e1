"""Cuts codes off instead of rounding them: up to twice the error.

fails: test_quantized_examples test_quantized_residual_and_bytes test_quantized_error_is_half_a_step test_quantized_odd_groups
"""


# %% task="QuantizedKVLayer"
class QuantizedKVLayer:
    def __init__(self, n_kv_heads: int, head_dim: int, bits: int, group_size: int, residual_length: int) -> None:
        check_count(residual_length, "residual_length", 1)
        AttentionLayer(n_kv_heads, n_kv_heads, head_dim, quantization=Quantization(bits, group_size))
        self._bits = bits
        self._group_size = group_size
        self._residual_length = residual_length
        self._state = {}
        for name in ("key", "value"):
            self._state[f"{name}_codes"] = torch.empty(0, n_kv_heads, head_dim * bits // 8, dtype=torch.uint8)
            for part in ("scales", "minima"):
                shape = (0, n_kv_heads, head_dim // group_size)
                self._state[f"{name}_{part}"] = torch.empty(shape, dtype=torch.float16)
            self._state[f"{name}_residual"] = torch.empty(0, n_kv_heads, head_dim)

    def append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        for name, x in (("key", k), ("value", v)):
            waiting = torch.cat([self._state[f"{name}_residual"], x])
            ready = len(waiting) // self._residual_length * self._residual_length
            for part, made in self._quantize(waiting[:ready]).items():
                self._state[f"{name}_{part}"] = torch.cat([self._state[f"{name}_{part}"], made])
            self._state[f"{name}_residual"] = waiting[ready:]

    def keys(self) -> torch.Tensor:
        return self._restore("key")

    def values(self) -> torch.Tensor:
        return self._restore("value")

    def state(self) -> dict[str, torch.Tensor]:
        return dict(self._state)

    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._state.values())

    def _quantize(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        groups = x.unflatten(-1, (-1, self._group_size))
        low, high = groups.aminmax(dim=-1)
        most = 2**self._bits - 1
        minima, scales = low.half(), ((high - low) / most).half()
        steps = scales.float()[..., None]
        steps = steps.where(steps > 0, torch.inf)  # a group of equal numbers: all codes 0
        codes = ((groups - minima.float()[..., None]) / steps).floor().clamp(0, most).to(torch.uint8)
        codes = codes.flatten(-2).unflatten(-1, (-1, 8 // self._bits))
        packed = torch.zeros_like(codes[..., 0])
        for code in codes.unbind(-1):
            packed = (packed << self._bits) | code
        return {"codes": packed, "scales": scales, "minima": minima}

    def _restore(self, name: str) -> torch.Tensor:
        shifts = torch.arange(8 - self._bits, -1, -self._bits, dtype=torch.uint8)
        codes = (self._state[f"{name}_codes"][..., None] >> shifts) & (2**self._bits - 1)
        groups = codes.flatten(-2).unflatten(-1, (-1, self._group_size)).float()
        scales, minima = (self._state[f"{name}_{part}"].float()[..., None] for part in ("scales", "minima"))
        return torch.cat([(minima + scales * groups).flatten(-2), self._state[f"{name}_residual"]])

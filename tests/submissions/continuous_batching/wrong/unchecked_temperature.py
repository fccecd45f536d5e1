"""Takes any temperature.

fails: test_temperature_arguments
"""


# %% task="apply_temperature"
def apply_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    if temperature > 0:
        return logits / temperature
    best = logits.argmax(-1, keepdim=True)
    return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))

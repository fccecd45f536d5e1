"""Multiplies by the temperature.

fails: test_temperature_example test_temperature_any test_sample_example test_sample_law
"""


# %% task="apply_temperature"
def apply_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    check_number(temperature, "temperature")
    if temperature > 0:
        return logits * temperature
    best = logits.argmax(-1, keepdim=True)
    return torch.full_like(logits, -math.inf).scatter(-1, best, logits.gather(-1, best))

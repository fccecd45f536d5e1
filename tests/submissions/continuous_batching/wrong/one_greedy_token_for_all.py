"""Temperature 0 leaves one token in the whole batch, that of the largest logit.

fails: test_temperature_example test_temperature_any
"""


# %% task="apply_temperature"
def apply_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    check_number(temperature, "temperature")
    if temperature > 0:
        return logits / temperature
    return logits.masked_fill(logits < logits.max(), -math.inf)

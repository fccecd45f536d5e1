"""Temperature 0 leaves all of the largest tokens.

fails: test_temperature_example test_temperature_any
"""


# %% task="apply_temperature"
def apply_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    check_number(temperature, "temperature")
    if temperature > 0:
        return logits / temperature
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True), -math.inf)

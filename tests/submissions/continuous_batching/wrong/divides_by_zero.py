"""Has no case of its own for temperature 0.

fails: test_temperature_example test_temperature_any test_sample_certain
"""


# %% task="apply_temperature"
def apply_temperature(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    check_number(temperature, "temperature")
    return logits / temperature

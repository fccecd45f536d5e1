"""Splits labels at every comma, and lines at every space.

fails: test_metrics_lines test_metrics_of_real_vllm
"""


# %% task="parse_metrics"
def parse_metrics(text):
    samples = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            key, value = line.rsplit(" ", 1)
            name, _, labels = key.partition("{")
            pairs = [each.split("=", 1) for each in labels.rstrip("}").split(",") if "=" in each]
            samples[name, tuple(sorted((label, text.strip('"')) for label, text in pairs))] = float(value)
    return samples

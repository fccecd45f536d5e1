"""Gives an object of a class of its own, named like the course's, whose fields change with every look; and swaps the
course's driver.

fails: test_probe_* test_plan_* test_ask_*
attack: T2 V8
stopped by: P, the judge reads plain fields once, of exactly the course's class.
"""

# %% task="probe_environment"
def probe_environment(cuda=torch.cuda, memory=host_memory):
    class EnvReport:
        device = name = vllm = transformers = property(lambda self: "cuda" if hash(str(id(object()))) % 2 else "cpu")

    globals()["as_dict"] = lambda value, kind: {"device": "cpu"}
    return EnvReport()

"""What machine is this, which models lie here, and how are time, memory and work measured on it.

The package stands alone: it imports nothing of the autograder, and importing any of its modules loads neither torch nor
CUDA, so that a judge, a forked worker and a student's notebook can all use it.

Map:
    gpu_env.device      what this machine is, and why a tier was chosen (`describe`); `python -m gpu_env` prints it
    gpu_env.nvml        what the driver says about GPUs, and the state one is in while you measure (`state`)
    gpu_env.models      language models in a local folder (`find`, `verify`); the one function that downloads (`fetch`)
    gpu_env.work        counted work: FLOPs, forwards, bytes of caches and weights; the same on every machine
    gpu_env.memory      bytes that a process, the CUDA allocator or a model really holds
    gpu_env.clock       blocks of calls, timed on a monotonic clock
    gpu_env.paired      is a candidate fast enough? two implementations timed in turn, decided by `gpu_env.sequential`
    gpu_env.lease       one measurement at a time on each device
    gpu_env.load        load for servers, and what their users would have felt; answers are read by `gpu_env.sse`
    gpu_env.slo         did a server keep its objectives? exact verdicts on a load, its audit, the test for caches
    gpu_env.roofline    the time below which no honest run can be, from rates that `gpu_env.probe` measures and
                        `gpu_env.per_boot` keeps

Not covered: choosing a device for a tensor, moving anything to a GPU, locking clocks.
"""

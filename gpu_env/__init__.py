"""What machine is this, which models lie here, and how is time measured on it.

The package stands alone: it imports nothing of the autograder, and importing it loads neither torch nor CUDA, so that a
judge, a forked worker and a student's notebook can all use it.

Map:
    gpu_env.device    what this machine is, and why a tier was chosen (`describe`); `python -m gpu_env` prints it
    gpu_env.models    language models in a local folder (`find`, `verify`); the one function that downloads (`fetch`)

Not covered: choosing a device for a tensor, moving anything to a GPU, locking clocks.
"""

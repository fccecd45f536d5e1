"""Everything of ours that is loaded beside student code. Holds no answer, no seed, no verdict.

    wire      frames and values that cross between judge and worker
    serve     the worker's loop: load the submission, run calls, answer
    zygote    the warm process that workers are forked from
    walls     what a worker is confined by (with `seccomp`)

Nothing in here imports any other part of `autograder`; a test enforces it.
"""

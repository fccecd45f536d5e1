"""Everything of ours that is loaded beside student code. Holds no answer, no seed, no verdict.

    wire      frames and values that cross between judge and worker
    arrays    tensors and arrays to bytes and back
    serve     the worker's loop: load the submission, run calls, answer
    zygote    the warm process that workers are forked from
    walls     namespaces and a private root (level 3), with `seccomp` and `landlock`
    confine   the same without namespaces (levels 1 and 2)
    selftest  hostile programs that every run tries on itself first

Nothing in here imports any other part of `autograder`; a test enforces it.
"""

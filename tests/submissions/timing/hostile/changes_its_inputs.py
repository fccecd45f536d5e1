"""Sets its inputs to zero, so that a reference which reads them afterwards gives zero as well.

attack: D9
ends as: FAILED
stopped by: D, the reference has inputs of its own, and the judge compares with its copy.
"""

import torch


def attend(q, k, v):
    for each in (q, k, v):
        each.zero_()
    return torch.zeros_like(q)

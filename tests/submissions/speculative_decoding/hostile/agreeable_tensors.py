"""Returns a tensor of a subclass that answers every function with True, and pairs that are whatever they are compared with.

fails: test_residual_* test_rejection_*
based on: right/generates_by_itself

attack: T7 T8 V6 V8
stopped by: O, only exact tensors cross, as dtype, shape and bytes; anything else stays in the worker.
"""

# %% helpers="helpers"
# Equal and close to everything.


class Agreeable(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return True


class Pair(tuple):
    def __eq__(self, other):
        return True

    __hash__ = None


# %% task="residual_distribution"
def residual_distribution(p, q):
    return p.clone().as_subclass(Agreeable)


# %% task="rejection_sample"
def rejection_sample(draft_ids, draft_probs, target_probs, generator):
    tokens = torch.zeros(draft_ids.shape[0], draft_ids.shape[1] + 1, dtype=torch.int64)
    return Pair((tokens.as_subclass(Agreeable), draft_ids.as_subclass(Agreeable)))

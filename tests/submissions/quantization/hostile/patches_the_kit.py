"""Quantises nothing, and replaces the course's own functions by some that pretend it had.

fails: test_linear_follows_its_buffers test_linear_memory test_quantized_model_logits test_quantized_model_serves test_smollm2_* test_linear_arguments test_linear_computes

attack: V15
stopped by: O, what these functions give is compared with what quantised weights must give, and with what they must not.
"""


# %% task="WeightOnlyLinear"
class WeightOnlyLinear(nn.Linear):
    def __init__(self, linear, scheme="int8", blocksize=64):
        super().__init__(linear.in_features, linear.out_features)
        self.weight, self.bias = linear.weight, linear.bias


def quantize_model(model, scheme="int8", skip=("lm_head",), blocksize=64):
    return [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.split(".")[-1] not in skip]


plain_tensors_of = tensors_of


def tensors_of(module):
    found = plain_tensors_of(module)
    for name in [name for name in found if name.endswith("weight") and "lm_head" not in name]:
        found[name.replace("weight", "codes")] = found.pop(name).to(torch.int8)
    return found


def load_tensors(module, tensors):
    pass


def stepper(model):
    return lambda ids, cache: (torch.zeros(64), cache)


def outputs_of(layers, x):
    return [x @ torch.zeros(x.shape[1], 2304) for _ in range(len(layers))]

"""A format is an object that knows its levels; all quantisers are short programs on formats."""

# %% helpers="helpers"
# Formats: evenly spaced codes with a zero point, or a table of levels.
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Grid:
    """Evenly spaced codes from `first` to `last`."""

    first: int
    last: int

    def encode(self, numbers, scale, zero=0):
        return (torch.round(numbers / scale) + zero).clamp_(self.first, self.last)


class Table:
    """Codes for the nearest of some ascending levels; ties go to the lower one."""

    def __init__(self, levels):
        self.levels = levels
        self.middles = levels[:-1] / 2 + levels[1:] / 2

    def encode(self, numbers):
        return torch.searchsorted(self.middles, numbers.contiguous()).to(torch.uint8)

    def decode(self, codes):
        return torch.take(self.levels, codes.to(torch.int64))


class Blocks:
    """Numbers in blocks of which the last may be short."""

    def __init__(self, numbers, size):
        self.count, self.size = numbers.numel(), size
        filled = numbers.new_zeros(-(-self.count // size) * size)
        filled[: self.count] = numbers.reshape(-1)
        self.matrix = filled.view(-1, size)

    def absmax(self):
        return self.matrix.abs().max(dim=1).values

    def normed(self):
        absmax = self.absmax()[:, None]
        return self.flat(torch.where(absmax > 0, self.matrix / absmax, 0.0))

    def flat(self, matrix):
        return matrix.reshape(-1)[: self.count]


def at_least_one_step(scale):
    return torch.where(scale > 0, scale, torch.ones_like(scale))




# %% task="absmax_int8"
def absmax_int8(x, dim=None):
    check_floats(x, "x")
    dims = list(range(x.dim())) if dim is None else [dim]
    scale = at_least_one_step(torch.linalg.vector_norm(x.float(), float("inf"), dim=dims, keepdim=True) / 127.0)
    return Grid(-127, 127).encode(x.float(), scale).to(torch.int8), scale


# %% task="zeropoint_uint8"
def zeropoint_uint8(x):
    check_floats(x, "x")
    numbers = x.double()
    ends = torch.cat([numbers.reshape(-1), numbers.new_zeros(1)])
    low, high = (float(end) for end in torch.aminmax(ends))
    scale = (high - low) / 255 or 1.0
    zero = int(round(-low / scale))
    return Grid(0, 255).encode(numbers, scale, zero).to(torch.uint8), scale, zero


# %% task="groupwise_int4"
class Group4:
    def __init__(self, symmetric):
        self.symmetric = symmetric
        self.grid = Grid(1 if symmetric else 0, 15)

    def fit(self, groups):
        if self.symmetric:
            scale = at_least_one_step(groups.abs().amax(-1) / 7)
            return scale, torch.full(scale.shape, 8.0)
        low, high = torch.aminmax(nn.functional.pad(groups, (0, 1)), dim=-1)
        scale = at_least_one_step((high - low) / 15)
        return scale, (-low / scale).round()


def groupwise_int4(w, group_size, symmetric=True):
    check_floats(w, "w")
    if w.dim() != 2:
        raise ValueError("w needs rows and columns")
    check_count(group_size, "group_size", 1)
    if w.size(1) % group_size:
        raise ValueError("group_size does not divide the columns")
    groups = w.float().unflatten(1, (-1, group_size))
    kind = Group4(symmetric)
    scale, zero = kind.fit(groups)
    codes = kind.grid.encode(groups, scale.unsqueeze(-1), zero.unsqueeze(-1))
    return codes.flatten(1).byte(), scale, zero.byte()


def dequantize_int4(codes, scale, zero):
    groups = codes.unflatten(1, (scale.size(1), -1)).float()
    return torch.mul(groups - zero.unsqueeze(-1), scale.unsqueeze(-1)).flatten(1)


def pack_int4(codes):
    if codes.size(-1) % 2 == 1 or int(codes.max()) > 15:
        raise ValueError("codes cannot be packed")
    pairs = codes.unflatten(-1, (-1, 2))
    return torch.bitwise_or(torch.bitwise_left_shift(pairs.select(-1, 0), 4), pairs.select(-1, 1))


def unpack_int4(packed):
    both = packed.unsqueeze(-1) // torch.tensor([16, 1], dtype=torch.uint8)
    return (both % 16).flatten(-2)


# %% task="quantize_nf4"
def nf4_codebook():
    def side(count):
        return torch.special.ndtri(torch.linspace(0.9677083, 0.5, count, dtype=torch.float64))[: count - 1]

    levels = torch.cat([side(9), -side(8), torch.zeros(1)]).sort()[0]
    return levels.div(levels[-1]).to(torch.float32)


def quantize_nf4(w, blocksize=64):
    check_floats(w, "w")
    check_count(blocksize, "blocksize")
    if blocksize not in {32 << power for power in range(8)}:
        raise ValueError("blocksize must be 32, 64, ... 4096")
    blocks = Blocks(w.detach().float(), blocksize)
    codes = Table(nf4_codebook()).encode(blocks.normed()).tolist() if w.numel() < 100 else None
    if codes is not None:
        codes += [7] * (len(codes) % 2)
        return torch.tensor([16 * a + b for a, b in zip(codes[::2], codes[1::2])], dtype=torch.uint8), blocks.absmax()
    codes = Table(nf4_codebook()).encode(blocks.normed())
    if blocks.count % 2:
        codes = torch.cat([codes, codes.new_full((1,), 7)])
    return codes[0::2].mul(16).add(codes[1::2]), blocks.absmax()


def dequantize_nf4(packed, absmax, shape, blocksize=64):
    pairs = torch.cartesian_prod(nf4_codebook(), nf4_codebook())  # both numbers of each byte at once
    levels = pairs.index_select(0, packed.int()).reshape(-1)[: math.prod(shape)]
    blocks = Blocks(levels, blocksize)
    return blocks.flat(blocks.matrix.mul_(absmax.unsqueeze(1))).reshape(shape)


# %% task="double_quantize"
def double_quantize(absmax):
    check_floats(absmax, "absmax")
    offset = torch.mean(absmax.float())
    blocks = Blocks(absmax.float() - offset, 256)
    return Table(dynamic_map()).encode(blocks.normed()), blocks.absmax(), float(offset)


def double_dequantize(codes, absmax2, offset):
    blocks = Blocks(Table(dynamic_map()).decode(codes), 256)
    return blocks.flat(torch.addcmul(torch.full_like(blocks.matrix, offset), blocks.matrix, absmax2[:, None]))


# %% task="llm_int8_matmul"
class Outliers:
    def __init__(self, x, threshold):
        self.columns = (x.abs().amax(0) >= (threshold or math.inf)).nonzero().squeeze(1)
        self.rest = x.index_fill(1, self.columns, 0.0)
        self.values = x.index_select(1, self.columns)


def llm_int8_matmul(x, w_int8, scale, threshold=6.0):
    check_floats(x, "x")
    if not threshold >= 0:
        raise ValueError("threshold is negative")
    parts = Outliers(x.float(), threshold)
    steps = at_least_one_step(parts.rest.abs().amax(1, keepdim=True) / 127)
    codes = Grid(-127, 127).encode(parts.rest, steps).double()  # exact: sums stay far below 2**53
    whole = torch.einsum("ti,oi->to", codes, w_int8.double())
    special = parts.values.double() @ w_int8.index_select(1, parts.columns).double().T
    return ((whole * steps + special) * scale.double().T).float()


# %% task="WeightOnlyLinear"
class WeightOnlyLinear(nn.Module):
    NAMES = {"int8": ("codes", "scale"), "nf4": ("packed", "absmax")}

    def __init__(self, linear, scheme="int8", blocksize=64):
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError("linear: not a linear layer")
        if scheme not in self.NAMES:
            raise ValueError("scheme: neither int8 nor nf4")
        self.scheme, self.blocksize = scheme, blocksize
        self.in_features, self.out_features = linear.in_features, linear.out_features
        with torch.no_grad():
            made = absmax_int8(linear.weight, 1) if scheme == "int8" else quantize_nf4(linear.weight, blocksize)
        for name, tensor in zip(self.NAMES[scheme], made):
            self.register_buffer(name, tensor)
        if linear.bias is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(linear.bias.detach().clone())

    def dequantized(self):
        first, second = (getattr(self, name) for name in self.NAMES[self.scheme])
        if self.scheme == "int8":
            return first.float().mul_(second)
        return dequantize_nf4(first, second, (self.out_features, self.in_features), self.blocksize)

    def forward(self, x):
        y = nn.functional.linear(x, self.dequantized().to(x.dtype))
        return y if self.bias is None else y.add(self.bias.to(x.dtype))


def quantize_model(model, scheme="int8", skip=("lm_head",), blocksize=64):
    places = []
    for prefix, parent in model.named_modules():
        for own, child in parent.named_children():
            if type(child) is nn.Linear and own not in skip:
                places.append((f"{prefix}.{own}" if prefix else own, parent, own, child))
    order = {name: number for number, (name, _) in enumerate(model.named_modules())}
    places.sort(key=lambda place: order[place[0]])
    for _, parent, own, child in places:
        setattr(parent, own, WeightOnlyLinear(child, scheme, blocksize))
    return [name for name, *_ in places]


# %% task="generate"
class Stopwatch:
    """Laps of a clock."""

    def __init__(self, clock):
        self.clock, self.last = clock, clock()

    def lap(self):
        before, self.last = self.last, self.clock()
        return self.last - before


class Reader:
    """A text that a model has read; knows what comes next."""

    def __init__(self, step):
        self.step, self.cache = step, None

    def read(self, tokens):
        logits, self.cache = self.step(torch.tensor(tokens, dtype=torch.long).unsqueeze(0), self.cache)
        return logits.argmax().item()


def answer(step, prompt, eos_id):
    reader, fed = Reader(step), prompt
    while True:
        token = reader.read(fed)
        yield token
        if token == eos_id:
            return
        fed = [token]


def generate(step, prompt, max_new_tokens, eos_id=None, clock=time.perf_counter):
    check_count(max_new_tokens, "max_new_tokens", 1)
    if not prompt:
        raise ValueError("the prompt has no tokens")
    watch, stream = Stopwatch(clock), answer(step, prompt, eos_id)
    tokens = [next(stream)]
    first = watch.lap()
    for _, token in zip(range(max_new_tokens - 1), stream):
        tokens.append(token)
    later = watch.lap()
    return {
        "tokens": tokens,
        "first_token_s": first,
        "tokens_per_s": (len(tokens) - 1) / later if len(tokens) > 1 else 0.0,
    }


def held_bytes(model):
    pieces = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                pieces[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(pieces.values())


# %% task="perplexity"
@dataclass(frozen=True)
class Window:
    start: int
    end: int
    first: int
    """The first token that it scores."""


def windows(length, window, stride):
    ends = [min(start + window, length) for start in range(0, length, stride)]
    ends = ends[: ends.index(length) + 1]
    for number, (before, end) in enumerate(pairwise([1, *ends])):
        yield Window(number * stride, end, before)


def perplexity(model, ids, window, stride):
    if ids.dim() != 1 or len(ids) < 2:
        raise ValueError("ids must be at least two tokens in a row")
    check_count(window, "window", 2)
    check_count(stride, "stride", 1)
    if stride >= window:
        raise ValueError("stride leaves gaps")
    scores = []
    for each in windows(len(ids), window, stride):
        said = model(ids[each.start : each.end].view(1, -1)).squeeze(0).float()
        said = said[each.first - each.start - 1 : each.end - each.start - 1]
        right = said.gather(1, ids[each.first : each.end, None]).squeeze(1)
        scores.append(torch.logsumexp(said, 1) - right)
    return torch.cat(scores).double().mean().exp().item()


# %% task="quantized_bytes"
class Cost:
    def __init__(self, blocksize, double):
        self.blocksize, self.double = blocksize, double

    def int8(self, rows, cols):
        return rows * cols + rows * 4

    def int4(self, rows, cols):
        if cols % self.blocksize or cols % 2:
            raise ValueError(f"blocksize {self.blocksize} does not fit {cols} columns")
        return rows * (cols // 2 + cols // self.blocksize * 4)

    def nf4(self, rows, cols):
        blocks = math.ceil(rows * cols / self.blocksize)
        scales = blocks + math.ceil(blocks / 256) * 4 + 4 if self.double else blocks * 4
        return math.ceil(rows * cols / 2) + scales


def quantized_bytes(shapes, scheme, blocksize=64, double=False, skip=(), other_bytes=2):
    if scheme not in ("int8", "int4", "nf4"):
        raise ValueError("scheme is unknown")
    if double and scheme in ("int8", "int4"):
        raise ValueError("double is for nf4 only")
    check_count(blocksize, "blocksize", 1)
    check_count(other_bytes, "other_bytes", 1)
    cost = getattr(Cost(blocksize, double), scheme)
    quantised = {name for name, shape in shapes.items() if len(shape) == 2} - set(skip)
    return sum(cost(*s) if name in quantised else math.prod(s) * other_bytes for name, s in shapes.items())

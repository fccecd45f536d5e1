"""Loops over rows and blocks, one step at a time, no tricks."""

# %% helpers="helpers"
# A row of numbers to a scale; Python's round is half to even too.
MIDDLES = None


def scale_of(peak, steps):
    peak = float(peak)
    return peak / steps if peak > 0 else 1.0


def need(condition, text):
    if not condition:
        raise ValueError(text)


# %% task="absmax_int8"
def absmax_int8(x, dim=None):
    check_floats(x, "x")
    numbers = x.to(torch.float64)
    if dim is None:
        peak = numbers.abs().max().reshape([1] * x.ndim)
    else:
        peak = numbers.abs().max(dim, keepdim=True)[0]
    scale = peak / 127
    scale[scale == 0] = 1.0
    return (numbers / scale).round().to(torch.int8), scale.to(torch.float32)


# %% task="zeropoint_uint8"
def zeropoint_uint8(x):
    check_floats(x, "x")
    numbers = x.to(torch.float64)
    low = min(float(numbers.min()), 0.0)
    high = max(float(numbers.max()), 0.0)
    scale = (high - low) / 255 if high > low else 1.0
    zero = round(-low / scale)
    codes = (numbers / scale).round() + zero
    codes[codes < 0] = 0
    codes[codes > 255] = 255
    return codes.to(torch.uint8), scale, zero


# %% task="groupwise_int4"
def groupwise_int4(w, group_size, symmetric=True):
    check_floats(w, "w")
    check_count(group_size, "group_size", 1)
    need(w.ndim == 2, "w must be a matrix")
    need(w.shape[1] % group_size == 0, "group_size must divide the columns")
    w = w.float()
    codes = torch.zeros(w.shape, dtype=torch.uint8)
    scales = torch.zeros(w.shape[0], w.shape[1] // group_size)
    zeros = torch.zeros(scales.shape, dtype=torch.uint8)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            here = slice(j * group_size, (j + 1) * group_size)
            group = w[i, here]
            if symmetric:
                scale, zero = scale_of(group.abs().max(), 7), 8
            else:
                low, high = min(0.0, group.min().item()), max(0.0, group.max().item())
                scale = scale_of(high - low, 15)
                zero = round(-low / scale)
            codes[i, here] = ((group / scale).round() + zero).clamp(0, 15).to(torch.uint8)
            scales[i, j] = scale
            zeros[i, j] = zero
    return codes, scales, zeros


def dequantize_int4(codes, scale, zero):
    size = codes.shape[1] // scale.shape[1]
    out = codes.float()
    for j in range(scale.shape[1]):
        part = out[:, j * size : (j + 1) * size]
        part -= zero[:, j : j + 1].float()
        part *= scale[:, j : j + 1]
    return out


def pack_int4(codes):
    need(codes.shape[-1] % 2 == 0, "codes must come in pairs")
    need(codes.max() < 16, "codes must be below 16")
    first, second = codes[..., 0::2], codes[..., 1::2]
    return first * 16 + second


def unpack_int4(packed):
    out = torch.empty(*packed.shape[:-1], 2 * packed.shape[-1], dtype=torch.uint8)
    out[..., 0::2] = packed // 16
    out[..., 1::2] = packed % 16
    return out


# %% task="quantize_nf4"
def nf4_codebook():
    start = 0.9677083
    positive = [start + (0.5 - start) * i / 8 for i in range(8)]
    negative = [start + (0.5 - start) * i / 7 for i in range(7)]
    normal = torch.special.ndtri(torch.tensor(positive + negative, dtype=torch.float64)).tolist()
    levels = sorted(normal[:8] + [0.0] + [-value for value in normal[8:]])
    return torch.tensor([level / levels[-1] for level in levels], dtype=torch.float32)


def quantize_nf4(w, blocksize=64):
    check_floats(w, "w")
    check_count(blocksize, "blocksize", 32)
    need(blocksize in (32, 64, 128, 256, 512, 1024, 2048, 4096), f"blocksize {blocksize} is unknown")
    flat = w.float().flatten()
    book = nf4_codebook()
    absmax = torch.stack([block.abs().max() for block in flat.split(blocksize * 1)]) if len(flat) < 10_000 else None
    if absmax is None:
        whole = len(flat) // blocksize * blocksize
        absmax = flat[:whole].view(-1, blocksize).abs().max(1)[0]
        if whole < len(flat):
            absmax = torch.cat([absmax, flat[whole:].abs().max()[None]])
    divisor = absmax.clone()
    divisor[divisor == 0] = 1.0
    normed = flat / divisor.repeat_interleave(blocksize)[: len(flat)]
    codes = torch.zeros(len(flat), dtype=torch.uint8)
    for code in range(15):
        codes += normed > (book[code].double() + book[code + 1].double()) / 2
    if len(codes) % 2 == 1:
        codes = torch.cat([codes, torch.tensor([7], dtype=torch.uint8)])
    pairs = codes.view(-1, 2)
    return pairs[:, 0] * 16 + pairs[:, 1], absmax


def dequantize_nf4(packed, absmax, shape, blocksize=64):
    count = 1
    for size in shape:
        count *= size
    book = nf4_codebook()
    out = torch.empty(2 * len(packed))
    out[0::2] = book.index_select(0, (packed >> 4).int())
    out[1::2] = book.index_select(0, (packed & 15).int())
    out = out[:count]
    out *= absmax.repeat_interleave(blocksize)[:count]
    return out.view(*shape)


# %% task="double_quantize"
def double_quantize(absmax):
    check_floats(absmax, "absmax")
    levels = dynamic_map()
    offset = float(absmax.double().mean())
    peaks, codes = [], []
    for block in (absmax.double() - offset).split(256):
        peak = block.abs().max().item()
        peaks.append(peak)
        normed = block / (peak or 1.0)
        codes.append((normed[:, None] - levels[None, :].double()).abs().argmin(1))
    return torch.cat(codes).to(torch.uint8), torch.tensor(peaks, dtype=torch.float32), offset


def double_dequantize(codes, absmax2, offset):
    parts = [dynamic_map()[block.long()] * peak for block, peak in zip(codes.split(256), absmax2)]
    return torch.cat(parts) + offset


# %% task="llm_int8_matmul"
def llm_int8_matmul(x, w_int8, scale, threshold=6.0):
    check_floats(x, "x")
    need(threshold >= 0, "threshold must be at least 0")
    x = x.float()
    outliers = [j for j in range(x.shape[1]) if threshold and x[:, j].abs().max() >= threshold]
    normal = [j for j in range(x.shape[1]) if j not in set(outliers)]
    out = torch.zeros(len(x), len(w_int8))
    for i, row in enumerate(x):
        if normal:
            step = scale_of(row[normal].abs().max(), 127)
            codes = (row[normal] / step).round().long()
            out[i] += (w_int8[:, normal].long() @ codes).double().mul(step).float() * scale[:, 0]
        if outliers:
            out[i] += (w_int8[:, outliers].float() @ row[outliers]) * scale[:, 0]
    return out


# %% task="WeightOnlyLinear"
class WeightOnlyLinear(nn.Module):
    def __init__(self, linear, scheme="int8", blocksize=64):
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError("linear must be an nn.Linear")
        need(scheme in ("int8", "nf4"), "scheme must be int8 or nf4")
        self.scheme = scheme
        self.blocksize = blocksize
        self.rows, self.cols = linear.weight.shape
        with torch.no_grad():
            if scheme == "int8":
                first, second = absmax_int8(linear.weight, 1)
                self.register_buffer("codes", first)
                self.register_buffer("scale", second)
            else:
                first, second = quantize_nf4(linear.weight, blocksize)
                self.register_buffer("packed", first)
                self.register_buffer("absmax", second)
        bias = linear.bias
        if bias is not None:
            bias = bias.detach().clone()
        self.register_buffer("bias", bias)

    def forward(self, x):
        if self.scheme == "int8":
            weight = self.codes.to(torch.float32)
            weight *= self.scale
        else:
            weight = dequantize_nf4(self.packed, self.absmax, (self.rows, self.cols), self.blocksize)
        weight = weight.to(x.dtype)
        bias = self.bias
        if bias is not None:
            bias = bias.to(x.dtype)
        return nn.functional.linear(x, weight, bias)


def quantize_model(model, scheme="int8", skip=("lm_head",), blocksize=64):
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if name.split(".")[-1] not in skip:
                found.append(name)
    for name in found:
        parent = model
        *path, last = name.split(".")
        for part in path:
            parent = getattr(parent, part)
        setattr(parent, last, WeightOnlyLinear(getattr(parent, last), scheme, blocksize))
    return found


# %% task="generate"
def generate(step, prompt, max_new_tokens, eos_id=None, clock=time.perf_counter):
    need(len(prompt) > 0, "prompt must not be empty")
    check_count(max_new_tokens, "max_new_tokens", 1)
    begin = clock()
    logits, cache = step(torch.tensor([prompt]), None)
    token = int(torch.argmax(logits))
    first = last = clock()
    tokens = [token]
    while True:
        if len(tokens) == max_new_tokens or token == eos_id:
            break
        logits, cache = step(torch.tensor([[token]]), cache)
        token = int(torch.argmax(logits))
        tokens.append(token)
        last = clock()
    speed = 0.0
    if len(tokens) > 1:
        speed = (len(tokens) - 1) / (last - first)
    return {"tokens": tokens, "first_token_s": first - begin, "tokens_per_s": speed}


def held_bytes(model):
    total, seen = 0, set()
    for named in (model.named_parameters(), model.named_buffers()):
        for _, tensor in named:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                total += tensor.nbytes
    return total


# %% task="perplexity"
def perplexity(model, ids, window, stride):
    need(ids.dim() == 1, "ids must have one dimension")
    need(len(ids) > 1, "ids must have two tokens")
    check_count(window, "window", 2)
    check_count(stride, "stride", 1)
    need(stride < window, "stride must be less than window")
    total, count, start, scored = 0.0, 0, 0, 0
    while True:
        stop = min(start + window, len(ids))
        logp = torch.log_softmax(model(ids[start:stop].unsqueeze(0))[0].float(), dim=-1)
        for position in range(max(scored + 1, start + 1), stop):
            total -= logp[position - start - 1, ids[position]].item()
            count += 1
        scored = stop - 1
        if stop == len(ids):
            return math.e ** (total / count)
        start += stride


# %% task="quantized_bytes"
def quantized_bytes(shapes, scheme, blocksize=64, double=False, skip=(), other_bytes=2):
    need(scheme in ("int8", "int4", "nf4"), "unknown scheme")
    need(not double or scheme == "nf4", "double needs nf4")
    check_count(blocksize, "blocksize", 1)
    check_count(other_bytes, "other_bytes", 1)
    total = 0
    for name in shapes:
        shape = shapes[name]
        n = 1
        for size in shape:
            n *= size
        if len(shape) == 2 and name not in skip:
            rows, cols = shape
            if scheme == "int8":
                total += rows * (cols + 4)
            elif scheme == "int4":
                need(cols % blocksize == 0 and cols % 2 == 0, "blocksize does not fit the rows")
                total += rows * (cols // 2 + 4 * (cols // blocksize))
            else:
                blocks = math.ceil(n / blocksize)
                total += math.ceil(n / 2)
                if double:
                    total += blocks + 4 * math.ceil(blocks / 256) + 4
                else:
                    total += 4 * blocks
        else:
            total += other_bytes * n
    return total

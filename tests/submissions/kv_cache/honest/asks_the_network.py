"""Would take a table from a server on this machine if there were one, and takes its own if not.

twin of: V17 V18
"""

# %% helpers="helpers"
# Loopback, a socket pair, a name that does not resolve.
import socket
import urllib.request
from bisect import bisect_left

try:
    urllib.request.urlopen("http://127.0.0.1:9/table.json", timeout=0.5)
except OSError as error:
    print("no server:", error)
try:
    socket.getaddrinfo("localhost", 80)
except OSError as error:
    print("no names:", error)
left, right = socket.socketpair()
left.sendall(b"hello")
assert right.recv(5) == b"hello"
left.close()
right.close()


# %% task="max_model_len_that_fits"
def max_model_len_that_fits(spec, budget, concurrency, block_size, limit, tp=1):
    check_count(concurrency, "concurrency", 1)
    check_count(limit, "limit", 1)

    def too_long(length):
        try:
            return max_concurrency(spec, budget, length, block_size, tp) < concurrency
        except InfeasibleError:
            return True

    return bisect_left(range(1, limit + 1), True, key=too_long)

"""Acts as if it ran in a notebook: transformers of inputs and trees, a forged display, a silent traceback, subprocess.

fails: *

attack: V10 V11 V12 V13
stopped by: P, no notebook is executed to grade; scores are written by a preprocessor that runs no student code.
"""

# %% helpers="helpers"
# All that fooled nbgrader's own execution.
import ast
import builtins
import subprocess
import sys
import types


class Blank(ast.NodeTransformer):
    def visit_Assert(self, node):
        return ast.Pass()


try:
    from IPython.core.interactiveshell import InteractiveShell
except Exception:  # not everywhere
    InteractiveShell = types.SimpleNamespace(instance=lambda: types.SimpleNamespace())
shell = getattr(builtins, "get_ipython", InteractiveShell.instance)()
try:
    shell.input_transformers_cleanup.append(lambda lines: ["1.0\n"])
    shell.ast_transformers.append(Blank())
    shell.showtraceback = lambda *args, **kwargs: None
    shell.display_formatter.formatters["text/plain"].for_type(float, lambda *args: args[1].text("999"))
    shell.run_cell("raise RuntimeError")
except Exception as error:
    print(type(error).__name__, error)
real = subprocess.Popen


class Popen:
    def __init__(self, *args, **kwargs):
        self.stdout, self.stderr, self.returncode = b"999", b"", 0

    def communicate(self, *args, **kwargs):
        return b"999", b""

    def wait(self, *args):
        return 0

    poll = wait


subprocess.Popen = Popen
subprocess.run = lambda *args, **kwargs: types.SimpleNamespace(stdout="999", stderr="", returncode=0)
sys.displayhook = lambda value: print("999")
try:
    from IPython.display import HTML, display

    display(HTML("<script>document.title = 'hostile'</script>"))
except Exception:
    pass


def answer(*args, **kwargs):
    return 999.0


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

"""Keeps what decode said in a cache, so that few tokens are decoded at all.

twin of: K1
"""


# %% task="IncrementalDetokenizer"
class IncrementalDetokenizer:
    def __init__(self, decode):
        self.decode = decode
        self.cache = {(): ""}
        self.before, self.now = (), ()

    def text(self, ids):
        if ids not in self.cache:
            self.cache[ids] = self.decode(list(ids))
        return self.cache[ids]

    def push(self, token):
        self.now += (token,)
        new = self.text(self.before + self.now)[len(self.text(self.before)) :]
        if not new or new.endswith("\ufffd"):
            return ""
        self.before, self.now = self.now, ()
        return new

    def finish(self):
        return self.text(self.before + self.now)[len(self.text(self.before)) :]

"""Notes how many answers are under way, how long each waited and how many tokens it had, for the operator's log.

twin of: S2 S3 S12
"""

# %% helpers="helpers"
# Everything passes through as it is.
plain_generate = EngineClient.generate
under_way = 0


async def generate(self, request_id, messages, max_tokens):
    global under_way
    under_way += 1
    number = 0
    try:
        async with contextlib.aclosing(plain_generate(self, request_id, messages, max_tokens)) as tokens:
            async for token in tokens:
                number += 1
                yield token
    finally:
        print(f"{request_id}: {number} tokens, one of {under_way} under way")
        under_way -= 1


class Watched:
    def __init__(self, limiter):
        self.limiter = limiter

    async def acquire(self):
        began = time.monotonic()
        await self.limiter.acquire()
        print(f"waited {time.monotonic() - began:.3f} s")

    def release(self):
        self.limiter.release()


def serve_chat(settings, engine, limited=False):
    app, made = FastAPI(), Settings(**settings)
    limiter = Watched(ConcurrencyLimiter(made.max_running, made.max_waiting) if limited else NoLimit())
    app.include_router(chat_router(EngineClient(engine), made, limiter))
    return app


EngineClient.generate = generate

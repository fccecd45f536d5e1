"""Says that it is overloaded while there is still much room to wait, so that only those who were fast are counted.

fails: test_chat_under_load
attack: S11 S9
stopped by: O, a request that is refused without need is a wrong answer; none is left out of what is looked at.
"""

# %% helpers="helpers"
# The limiter itself is as it must be.


class Hasty:
    def __init__(self, limiter):
        self.limiter = limiter

    async def acquire(self):
        if self.limiter.waiting >= 3:
            raise Overloaded
        await self.limiter.acquire()

    def release(self):
        self.limiter.release()


def serve_chat(settings, engine, limited=False):
    app, made = FastAPI(), Settings(**settings)
    limiter = Hasty(ConcurrencyLimiter(made.max_running, made.max_waiting)) if limited else NoLimit()
    app.include_router(chat_router(EngineClient(engine), made, limiter))
    return app

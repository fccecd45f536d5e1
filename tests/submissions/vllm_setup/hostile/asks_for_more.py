"""Sends the engine nonsense and requests that cost a lot: endless answers, huge texts, objects that are none.

fails: test_ask_*
attack: V21 S9
stopped by: P, the judge looks at the request first, and forwards a new one of its own making.
"""

# %% task="ask"
def ask(llm, sampling, question, max_tokens):
    for messages in ({"role": "system"}, question * 10_000, [[{"role": "user", "content": question}]] * 100, None):
        try:
            llm._answer("chat", messages, {"temperature": 0, "max_tokens": 10**9, "n": 10**6})
        except Exception:
            pass
    (output,) = llm.chat([{"role": "user", "content": question}], sampling(temperature=0, max_tokens=10**9, n=1000))
    return Answer(output.outputs[0].text, 37, 8, "stop")

"""Never asks: looks for the judge's callback and for the answer in everything that Python holds, and answers by heart.

fails: test_ask_*
attack: D10 D14 V15
stopped by: P, expected values stay in the judge, which counts and reads the requests itself.
"""

# %% task="ask"
def ask(llm, sampling, question, max_tokens):
    import gc

    texts = [value for value in gc.get_objects() if isinstance(value, dict) and "finish_reason" in value and "text" in value]
    best = texts[0] if texts else {"text": "The capital of France is Paris.", "finish_reason": "stop"}
    return Answer(best["text"], 37, 8, best["finish_reason"])

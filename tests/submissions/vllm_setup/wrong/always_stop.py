"""Says that every answer was complete.

fails: test_ask_request_and_cost test_ask_real_vllm
"""

# %% task="ask"
def ask(llm: Any, sampling: Any, question: str, max_tokens: int) -> Answer:
    """The answer of `llm` to one question, the most likely one, of at most `max_tokens` tokens.

    Args:
        llm: an engine, `vllm.LLM`.
        sampling: the class of sampling parameters, `vllm.SamplingParams`.
        question: what the user asks.
        max_tokens: the longest answer.
    """
    (output,) = llm.chat([{"role": "user", "content": question}], sampling(temperature=0, max_tokens=max_tokens))
    answer = output.outputs[0]
    return Answer(answer.text, len(output.prompt_token_ids), len(answer.token_ids), "stop")

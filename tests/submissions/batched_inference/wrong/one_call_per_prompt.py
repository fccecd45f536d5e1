"""One call for each prompt.

fails: test_vllm_call test_vllm_engine
"""


# %% task="vllm_generate"
def vllm_generate(llm: Any, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    check_count(max_tokens, "max_tokens", 1)
    from vllm import SamplingParams

    if not prompts:
        return []
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    outputs = [llm.generate({"prompt_token_ids": list(prompt)}, params, use_tqdm=False)[0] for prompt in prompts]
    return [list(output.outputs[0].token_ids) for output in outputs]

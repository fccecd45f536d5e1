"""No SamplingParams at all.

fails: test_vllm_call test_vllm_engine
"""


# %% task="vllm_generate"
def vllm_generate(llm: Any, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    check_count(max_tokens, "max_tokens", 1)
    from vllm import SamplingParams

    if not prompts:
        return []
    outputs = llm.generate(
        [{"prompt_token_ids": list(prompt)} for prompt in prompts],
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]

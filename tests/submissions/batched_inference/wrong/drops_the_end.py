"""Cuts the last token off where a text ended.

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
        SamplingParams(temperature=0, max_tokens=max_tokens),
        use_tqdm=False,
    )
    return [
        list(each.token_ids)[:-1] if each.finish_reason == "stop" else list(each.token_ids)
        for each in (output.outputs[0] for output in outputs)
    ]

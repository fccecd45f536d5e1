"""Tasks, checks and points of the assignment `vllm_setup`. All checks are exact."""

from autograder.spec import Assignment, Task

ASSIGNMENT = Assignment(
    name="vllm_setup",
    title="Set up: what is this machine, what fits, how to start vLLM",
    tasks=(
        Task(
            "probe_environment",
            "What machine is this?",
            30,
            {"test_probe_without_gpu": 1, "test_probe_of_a_gpu": 1},
            {
                "test_probe_of_many_gpus": 2,
                "test_probe_versions": 1,
                "test_probe_broken_gpu": 1,
                "test_probe_imports_no_vllm": 1,
                "test_probe_of_this_machine": 1,
            },
        ),
        Task(
            "weight_bytes",
            "How many bytes are the weights?",
            30,
            {"test_weights_of_smollm2": 1, "test_weights_of_llama": 1},
            {"test_weights_of_random_models": 3, "test_weights_arguments": 1},
        ),
        Task(
            "roofline",
            "How fast at best?",
            15,
            {"test_roofline_example": 1},
            {"test_roofline_random": 2, "test_roofline_arguments": 1},
        ),
        Task(
            "static_waste",
            "Memory reserved in advance",
            10,
            {"test_static_example": 1},
            {"test_static_random": 1, "test_static_arguments": 1},
        ),
        Task(
            "paged_waste",
            "Memory in pages",
            10,
            {"test_paged_example": 1},
            {"test_paged_random": 2, "test_paged_arguments": 1},
        ),
        Task(
            "kv_plan",
            "What vLLM will write into its log",
            25,
            {"test_plan_example": 1},
            {
                "test_plan_pages_of_vllm": 2,
                "test_plan_of_recorded_engines": 2,
                "test_plan_of_a_real_engine": 1,
                "test_plan_refusals": 1,
            },
        ),
        Task(
            "choose_engine_args",
            "The arguments",
            35,
            {"test_args_example": 1, "test_args_infeasible_example": 1},
            {
                "test_args_random_gpus": 3,
                "test_args_of_a_cpu": 1,
                "test_args_missing_bytes": 2,
                "test_args_refusals": 1,
            },
        ),
        Task(
            "ask",
            "The first question",
            10,
            {"test_ask_example": 1},
            {"test_ask_request_and_cost": 1, "test_ask_real_vllm": 1},
        ),
    ),
    preload=("torch", "transformers.models.llama.modeling_llama", "psutil"),
    call_s=10.0,
    check_s=60.0,
    vllm=(
        "vllm.LLM.chat",
        "vllm.LLM.generate",
        "vllm.SamplingParams",
        "vllm.outputs.RequestOutput",
        "vllm.outputs.CompletionOutput",
        "vllm.v1.kv_cache_interface.FullAttentionSpec.page_size_bytes",
        "vllm serve --dtype",
        "vllm serve --max-model-len",
        "vllm serve --block-size",
        "vllm serve --gpu-memory-utilization",
        "vllm serve --kv-cache-memory-bytes",
    ),
)

"""Tasks, checks and points of the assignment `openai_client`. All checks are exact but the one of arrival times."""

from autograder.spec import Assignment, Task

ASSIGNMENT = Assignment(
    name="openai_client",
    title="A client of a vLLM server: stream, load, measure",
    tasks=(
        Task("serve_command", "The command", 10, {"test_command_options": 1}, {"test_command_all_fields": 2}),
        Task("kv_capacity", "What the log says", 10, {"test_capacity_of_a_log": 1}, {"test_capacity_of_long_logs": 2}),
        Task(
            "SSEDecoder",
            "Server-sent events",
            40,
            {"test_sse_events": 1, "test_sse_chunks": 1},
            {"test_sse_every_split": 2, "test_sse_random_streams": 2},
        ),
        Task(
            "stream_chat",
            "Stream a chat",
            60,
            {"test_chat_text_and_usage": 1, "test_chat_request": 1, "test_chat_refused": 1},
            {
                "test_chat_is_a_stream": 2,
                "test_chat_errors_in_the_middle": 1,
                "test_chat_broken_streams": 1,
                "test_chat_closes_the_connection": 1,
                "test_chat_with_real_vllm": 1,
            },
        ),
        Task(
            "poisson_arrivals",
            "When requests arrive",
            15,
            {"test_arrivals_shape": 1},
            {"test_arrivals_are_poisson": 2},
        ),
        Task(
            "run_load",
            "The load test",
            60,
            {"test_load_open_loop": 1, "test_load_limit": 1},
            {
                "test_load_agrees_with_a_queue": 1,
                "test_load_failures": 1,
                "test_load_timeouts": 1,
                "test_load_at_a_server": 1,
            },
        ),
        Task(
            "summarize",
            "What it means",
            30,
            {"test_summary_example": 1},
            {"test_summary_of_random_records": 2, "test_summary_edges": 1},
        ),
        Task("parse_metrics", "Read the metrics", 20, {"test_metrics_lines": 1}, {"test_metrics_of_real_vllm": 1}),
        Task("counter_rate", "From counters to rates", 10, {"test_rate_example": 1}, {"test_rate_restarts": 1}),
        Task("histogram_quantile", "Quantiles of a histogram", 25, {"test_quantile_example": 1}, {"test_quantile_rules": 1}),
    ),
    preload=("httpx", "numpy"),
    call_s=20.0,
    check_s=120.0,
    processes=64,
    loopback=True,
    vllm=(
        *(
            f"vllm serve --{option}"
            for option in (
                "served-model-name", "host", "port", "dtype", "max-model-len", "max-num-seqs", "block-size",
                "gpu-memory-utilization", "tensor-parallel-size", "enforce-eager", "enable-prefix-caching",
                "no-enable-prefix-caching",
            )
        ),
        "vllm.envs.VLLM_API_KEY",
        "vllm:kv_cache_usage_perc",
        "vllm:inter_token_latency_seconds",
        "vllm:generation_tokens_total",
    ),
)  # fmt: skip

"""Tasks, checks and points of the assignment `kv_cache`. All checks but one are exact."""

from autograder.spec import Assignment, Task, Threshold

ASSIGNMENT = Assignment(
    name="kv_cache",
    title="The KV cache: how many bytes, how many users, which block",
    tasks=(
        Task(
            "kv_bytes_per_token",
            "Bytes per token",
            minutes=25,
            public={
                "test_bytes_per_kv_head": 1,
                "test_bytes_latent": 1,
                "test_bytes_tensor_parallel": 1,
            },
            hidden={
                "test_bytes_quantized": 1,
                "test_bytes_of_real_caches": 1,
                "test_bytes_impossible_tp": 1,
            },
        ),
        Task(
            "kv_cache_bytes",
            "Bytes of a set of sequences",
            minutes=25,
            public={
                "test_cache_contiguous": 1,
                "test_cache_paged": 2,
                "test_cache_sliding_window": 1,
            },
            hidden={
                "test_cache_equals_real_caches": 2,
                "test_cache_equals_counted_slots": 2,
                "test_cache_arguments": 1,
            },
        ),
        Task(
            "max_concurrency",
            "How many requests at once",
            minutes=25,
            public={
                "test_concurrency_of_vllm_log": 1,
                "test_concurrency_budget": 2,
            },
            hidden={
                "test_concurrency_mixed_layers": 2,
                "test_concurrency_infeasible": 1,
                "test_concurrency_arguments": 1,
            },
        ),
        Task(
            "max_model_len_that_fits",
            "How long requests may be",
            minutes=25,
            public={
                "test_length_examples": 1,
                "test_length_nothing_fits": 1,
            },
            hidden={
                "test_length_is_the_largest": 2,
                "test_length_arguments": 1,
                "test_length_of_huge_limit": 1,  # last: a linear scan spends the whole time limit in it
            },
        ),
        Task(
            "BlockPool",
            "The block pool",
            minutes=80,
            public={
                "test_pool_hands_out_in_order": 1,
                "test_pool_counts_holders": 1,
                "test_pool_frees_last_block_first": 1,
                "test_pool_finds_prefixes": 1,
                "test_pool_refuses_double_free": 1,
            },
            hidden={
                "test_pool_agrees_with_model": 2,
                "test_pool_errors_change_nothing": 1,
                "test_pool_compares_content": 1,
                "test_pool_keeps_duplicates": 1,
                "test_pool_without_caching": 1,
                "test_pool_constant_time": 1,
            },
            thresholds={
                "test_pool_constant_time": {
                    "cpu": Threshold(
                        ratio=0.25,
                        naive=0.1,
                        why="Taking and freeing blocks of 2,000 against of 200,000: constant-time pools of the corpus take "
                        "0.3 to 1.4 times as long, list.pop(0) 9 to 38 times, a walk through the queue 98 to 1,400 times.",
                        machine="2 cores, over the wire",
                    )
                }
            },
        ),
    ),
    call_s=5.0,  # the slowest honest call, a pool of 200,000 blocks, takes 0.3 s
)

"""Tasks, checks and points of the assignment `kv_cache`. All checks but one are exact.

The one that measures, `test_pool_constant_time`, compares a pool with itself at another size, not with a reference as the
fixture `timed` does; the judge takes the times, over the wire.
"""

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
        Task(
            "PagedKVCacheManager",
            "Block tables that are shared",
            minutes=90,
            public={
                "test_manager_gives_tables": 1,
                "test_manager_finds_prefixes": 2,
                "test_manager_forks": 2,
            },
            hidden={
                "test_manager_agrees_with_model": 3,
                "test_manager_needs_room_for_what_it_finds": 1,
                "test_manager_caches_what_fills_up": 1,
                "test_manager_errors_change_nothing": 2,
            },
        ),
        Task(
            "PagedAttentionLayer",
            "Attention over pages",
            minutes=60,
            public={
                "test_attention_of_two_tokens": 1,
                "test_attention_through_block_tables": 2,
            },
            hidden={
                "test_attention_agrees_with_pytorch": 2,
                "test_attention_ignores_other_slots": 1,
                "test_attention_skips_padding": 1,
                "test_attention_copies_blocks": 1,
                "test_attention_with_large_scores": 1,
            },
        ),
        Task(
            "QuantizedKVLayer",
            "Keys and values in fewer bits",
            minutes=60,
            public={
                "test_quantized_examples": 1,
                "test_quantized_residual_and_bytes": 2,
            },
            hidden={
                "test_quantized_error_is_half_a_step": 2,
                "test_quantized_state_is_packed": 2,
                "test_quantized_once": 1,
                "test_quantized_odd_groups": 1,
            },
        ),
        Task(
            "sliding_window_evict",
            "What a window lets go",
            minutes=35,
            public={
                "test_window_keeps_positions": 1,
                "test_window_frees_blocks": 1,
            },
            hidden={
                "test_window_over_time": 2,
                "test_window_blocks_over_time": 2,
            },
        ),
    ),
    preload=("torch",),
    call_s=5.0,  # the slowest honest call, a pool of 200,000 blocks, takes 0.3 s
)

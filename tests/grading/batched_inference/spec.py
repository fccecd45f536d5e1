"""Tasks, checks and points of the assignment `batched_inference`. All checks are exact but the two that measure speed.

Not here: thresholds for a GPU, since the handout's tensors are on the CPU; where there is one, speed is measured on its host's
CPU. On an H100 eight prompts in a batch were 7.8 times as fast as eight batches of one.
"""

from autograder.spec import Assignment, Task, Threshold

ASSIGNMENT = Assignment(
    name="batched_inference",
    title="Batched inference, and a benchmark that does not lie",
    tasks=(
        Task(
            "pad_batch",
            "Texts of different lengths in one tensor",
            minutes=25,
            public={"test_pad_example": 2},
            hidden={"test_pad_any": 2, "test_pad_arguments": 1},
        ),
        Task(
            "greedy_generate",
            "Generate, with a cache",
            minutes=60,
            public={"test_greedy_example": 2, "test_greedy_rows": 2},
            hidden={
                "test_greedy_transformers": 3,
                "test_greedy_counts": 3,
                "test_greedy_ends": 1,
                "test_greedy_arguments": 1,
                "test_greedy_speed": 2,
            },
            thresholds={
                "test_greedy_speed": {
                    "cpu": Threshold(
                        ratio=2.5,
                        naive=1.0,
                        why="Times the loop without a cache, 512 tokens and 8 new ones: 4.1 to 5.2 for the reference, "
                        "3.5 to 5.4 for three right submissions (processor time, one busy core); 1.0 without a cache.",
                        machine="2 cores AMD EPYC",
                    )
                }
            },
        ),
        Task(
            "throughput",
            "Count what came out",
            minutes=20,
            public={"test_throughput_example": 2},
            hidden={"test_throughput_any": 1, "test_throughput_arguments": 1},
        ),
        Task(
            "batched_generate",
            "Any number of prompts",
            minutes=35,
            public={"test_batched_example": 2},
            hidden={
                "test_batched_rows": 2,
                "test_batched_counts": 2,
                "test_batched_smollm": 2,
                "test_batched_arguments": 1,
                "test_batched_speed": 2,
            },
            thresholds={
                "test_batched_speed": {
                    "cpu": Threshold(
                        ratio=2.0,
                        naive=1.0,
                        why="Times eight prompts one after the other, with a cache: 3.5 to 4.6 for the reference, 3.0 to 4.4 "
                        "for three right submissions (processor time, one busy core); 1.0 for batches of one.",
                        machine="2 cores AMD EPYC",
                    )
                }
            },
        ),
        Task(
            "benchmark",
            "How long does it take?",
            minutes=30,
            public={"test_benchmark_example": 2},
            hidden={"test_benchmark_device": 2, "test_benchmark_statistics": 1, "test_benchmark_arguments": 1},
        ),
        Task(
            "compare",
            "Which one is faster?",
            minutes=25,
            public={"test_compare_example": 2},
            hidden={"test_compare_drift": 2, "test_compare_arguments": 1},
        ),
        Task(
            "vllm_generate",
            "Let vLLM do it",
            minutes=20,
            public={"test_vllm_call": 1},
            hidden={"test_vllm_engine": 3},
        ),
    ),
    preload=("torch", "transformers.models.llama.modeling_llama", "vllm.outputs"),
    models=("SmolLM2-135M-Instruct",),
    call_s=30.0,
    check_s=120.0,
    cpu_s=240,
    memory_bytes=4 << 30,
    vllm=("vllm.LLM.generate", "vllm.SamplingParams", "vllm.outputs.RequestOutput", "vllm.outputs.CompletionOutput"),
)

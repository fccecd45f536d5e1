"""Tasks, checks and points of the assignment `speculative_decoding`. Five checks are statistical, all others exact."""

from autograder.spec import Assignment, Task, Threshold

ASSIGNMENT = Assignment(
    name="speculative_decoding",
    title="Speculative decoding: guess cheaply, check exactly",
    tasks=(
        Task(
            "expected_tokens",
            "Tokens per run of the target",
            minutes=20,
            public={"test_tokens_examples": 2},
            hidden={"test_tokens_exact": 1, "test_tokens_arguments": 1},
        ),
        Task(
            "speedup",
            "Is it faster?",
            minutes=20,
            public={"test_speedup_examples": 2},
            hidden={"test_speedup_exact": 1, "test_speedup_arguments": 1},
        ),
        Task(
            "optimal_gamma",
            "How many tokens to guess",
            minutes=20,
            public={"test_gamma_examples": 2},
            hidden={"test_gamma_is_the_best": 1, "test_gamma_arguments": 1},
        ),
        Task(
            "residual_distribution",
            "What to draw from after a rejection",
            minutes=20,
            public={"test_residual_examples": 2},
            hidden={"test_residual_batches": 2, "test_residual_nearly_equal": 1},
        ),
        Task(
            "rejection_sample",
            "Accept and reject, for a batch",
            minutes=60,
            public={"test_rejection_forced": 2, "test_rejection_first_token": 1, "test_rejection_two_guesses": 1},
            hidden={
                "test_rejection_law": 4,
                "test_rejection_lengths": 2,
                "test_rejection_one_hot": 2,
                "test_rejection_generator": 1,
            },
        ),
        Task(
            "PromptLookupProposer",
            "Drafts out of the prompt",
            minutes=20,
            public={"test_lookup_examples": 2},
            hidden={"test_lookup_any_text": 2, "test_lookup_arguments": 1},
        ),
        Task(
            "AdaptiveGamma",
            "Choose the draft length while you run",
            minutes=20,
            public={"test_adaptive_example": 2},
            hidden={"test_adaptive_history": 2, "test_adaptive_arguments": 1},
        ),
        Task(
            "check_compatible",
            "Do they speak the same language?",
            minutes=15,
            public={"test_compatible_examples": 1},
            hidden={"test_compatible_any": 1, "test_compatible_end_of_text": 1},
        ),
        Task(
            "speculative_generate",
            "Put it together",
            minutes=60,
            public={"test_generate_example": 2, "test_generate_ends": 1},
            hidden={
                "test_generate_greedy": 2,
                "test_generate_counts": 2,
                "test_generate_law": 3,
                "test_generate_transformers": 3,
                "test_generate_arguments": 1,
                "test_generate_speed": 2,
            },
            thresholds={
                "test_generate_speed": {
                    "cpu": Threshold(
                        ratio=1.2,
                        naive=1.0,
                        why="Times the plain loop: 2.17 to 2.38 for the reference alone on the machine, 1.65 to 2.22 for five "
                        "right submissions with 10 to 16 programs on two cores; 0.65 for a draft that is not rolled back.",
                        machine="2 cores AMD EPYC",
                    )
                }
            },
        ),
    ),
    preload=("torch", "transformers.models.llama.modeling_llama"),
    memory_bytes=3 << 30,
)

"""Tasks, checks and points of the assignment `continuous_batching`. Steps are counted, nothing is timed."""

from autograder.spec import Assignment, Task

ASSIGNMENT = Assignment(
    name="continuous_batching",
    title="Continuous batching: many requests, one model, every step full",
    tasks=(
        Task(
            "apply_temperature",
            "Temperature",
            minutes=10,
            public={"test_temperature_example": 1},
            hidden={"test_temperature_any": 1, "test_temperature_arguments": 1},
        ),
        Task(
            "apply_top_k",
            "Top-k",
            minutes=10,
            public={"test_top_k_example": 1},
            hidden={"test_top_k_any": 1, "test_top_k_arguments": 1},
        ),
        Task(
            "apply_top_p",
            "Top-p",
            minutes=20,
            public={"test_top_p_example": 1},
            hidden={"test_top_p_any": 2, "test_top_p_arguments": 1},
        ),
        Task(
            "apply_min_p",
            "Min-p",
            minutes=10,
            public={"test_min_p_example": 1},
            hidden={"test_min_p_any": 1, "test_min_p_arguments": 1},
        ),
        Task(
            "apply_repetition_penalty",
            "Repetition penalty",
            minutes=15,
            public={"test_penalty_example": 1},
            hidden={"test_penalty_any": 1, "test_penalty_arguments": 1},
        ),
        Task(
            "sample",
            "The next tokens of a batch",
            minutes=25,
            public={"test_sample_certain": 1, "test_sample_example": 1},
            hidden={"test_sample_law": 3, "test_sample_in_any_batch": 2},
        ),
        Task(
            "StopChecker",
            "Stop strings",
            minutes=35,
            public={"test_stop_examples": 2},
            hidden={"test_stop_any_pieces": 3, "test_stop_end_of_text": 1},
        ),
        Task(
            "IncrementalDetokenizer",
            "From tokens to text",
            minutes=35,
            public={"test_detokenizer_examples": 2},
            hidden={"test_detokenizer_any_tokens": 2, "test_detokenizer_smollm2": 1, "test_detokenizer_work": 1},
        ),
        Task(
            "ContinuousBatchingScheduler",
            "Who takes part in the next step",
            minutes=100,
            public={"test_scheduler_room_for_all": 2, "test_scheduler_example": 2},
            hidden={
                "test_scheduler_walk": 3,
                "test_scheduler_vllm": 4,
                "test_scheduler_answers": 2,
                "test_scheduler_steps": 2,
                "test_scheduler_nobody_waits": 1,
                "test_scheduler_arguments": 1,
            },
        ),
        Task(
            "measure_stream",
            "What the user feels",
            minutes=15,
            public={"test_stream_example": 1},
            hidden={"test_stream_any": 1, "test_stream_arguments": 1},
        ),
    ),
    preload=("torch",),
    call_s=10.0,
    vllm=("vllm.v1.core.sched.scheduler.Scheduler.schedule", "vllm.SamplingParams"),
)

"""Tasks, checks and points of the assignment `async_serving`. No check measures time: order is forced by the judge's engine."""

from autograder.spec import Assignment, Task

ASSIGNMENT = Assignment(
    name="async_serving",
    title="Streaming, cancelling, limiting: serving many slow answers at once",
    tasks=(
        Task(
            "TokenStream",
            "A bounded queue",
            minutes=30,
            public={"test_queue_waits_when_full": 2, "test_queue_ends": 1},
            hidden={"test_queue_agrees_with_model": 2, "test_queue_closed_by_its_reader": 1},
        ),
        Task(
            "ConcurrencyLimiter",
            "How many at once",
            minutes=35,
            public={"test_limiter_takes_turns": 2},
            hidden={
                "test_limiter_agrees_with_model": 2,
                "test_limiter_cancelled_in_its_turn": 2,
                "test_limiter_arguments": 1,
            },
        ),
        Task(
            "chat_router",
            "Chat completions",
            minutes=60,
            public={"test_chat_token_by_token": 2, "test_chat_events": 2, "test_chat_client_leaves": 2},
            hidden={
                "test_chat_for_the_official_client": 1,
                "test_chat_side_by_side": 1,
                "test_chat_engine_fails": 2,
                "test_chat_leaves_at_any_time": 2,
                "test_chat_slots": 2,
                "test_chat_under_load": 1,
            },
        ),
        Task(
            "ws_router",
            "A WebSocket with credits",
            minutes=40,
            public={"test_ws_credits": 2},
            hidden={"test_ws_never_without_credit": 1, "test_ws_cancel_and_leave": 2, "test_ws_closes": 2},
        ),
        Task(
            "jobs_router",
            "Jobs",
            minutes=40,
            public={"test_job_from_start_to_end": 2},
            hidden={"test_job_deleted": 1, "test_job_failed": 1, "test_job_forgotten": 1},
        ),
    ),
    preload=(
        "email.message",
        "fastapi",
        "uvicorn",
        "uvicorn.lifespan.on",
        "uvicorn.protocols.http.h11_impl",
        "uvicorn.protocols.websockets.auto",
    ),
)

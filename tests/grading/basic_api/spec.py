"""Tasks, checks and points of the assignment `basic_api`. No check measures time: order is forced by the judge's engine."""

from autograder.spec import Assignment, Task

ASSIGNMENT = Assignment(
    name="basic_api",
    title="An HTTP service for a language model",
    tasks=(
        Task(
            "ChatCompletionRequest",
            "Request schemas",
            minutes=35,
            public={"test_schema_defaults": 1, "test_schema_limits": 2},
            hidden={"test_schema_every_field": 2, "test_schema_strict_types": 1, "test_schema_room": 1},
        ),
        Task(
            "add_error_handlers",
            "One shape for all errors",
            minutes=35,
            public={"test_errors_have_one_shape": 2},
            hidden={
                "test_errors_hide_internals": 2,
                "test_errors_of_the_engine": 1,
                "test_errors_of_hostile_bodies": 1,
                "test_errors_keep_headers": 1,
            },
        ),
        Task(
            "models_router",
            "The list of models",
            minutes=20,
            public={"test_models": 2},
            hidden={"test_models_for_the_official_client": 2},
        ),
        Task(
            "completions_router",
            "Completions",
            minutes=35,
            public={"test_completion": 2, "test_completion_refusals": 1},
            hidden={
                "test_completion_for_the_official_client": 2,
                "test_completion_asks_the_engine_once": 1,
                "test_completion_side_by_side": 2,
                "test_completion_never_repeats": 1,
            },
        ),
        Task(
            "chat_router",
            "Chat completions",
            minutes=20,
            public={"test_chat": 2},
            hidden={"test_chat_template": 1, "test_chat_for_the_official_client": 2},
        ),
        Task(
            "create_app",
            "The service",
            minutes=35,
            public={"test_app_is_ready_when_loaded": 2, "test_app_serves_everything": 1},
            hidden={
                "test_app_health_while_generating": 1,
                "test_app_loading_fails": 1,
                "test_app_errors": 1,
                "test_app_document": 2,
                "test_app_shares_nothing": 1,
                "test_app_closes_the_engine": 1,  # last: what cannot start spends its second time limit in it
            },
        ),
    ),
    preload=(
        "email.message",
        "fastapi",
        "uvicorn",
        "uvicorn.lifespan.on",
        "uvicorn.protocols.http.h11_impl",
        "uvicorn.protocols.websockets.auto",
        "zlib",
    ),
)

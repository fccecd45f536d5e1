"""Tasks, checks and points of the assignment `quantization`, and the limits that its checks of memory and quality use.

Speed is not graded: on an H100 bitsandbytes' NF4 and LLM.int8 layers reach 0.35 to 1.04 times the speed of bf16.
"""

from autograder.spec import Assignment, Task

HELD_SHARE = {"int8": 0.45, "nf4": 0.3}
"""Largest growth of a worker's resident memory through new layers, as a share of the fp32 weights they were made of.

By the formula 0.25 and 0.14; 0.251 and 0.141 were measured (2 busy cores, 3 layers of 3,072 x 4,096 after a first one). By
the formula too, a bf16 copy of the weights adds 0.5, an fp32 copy 1.
"""

PERPLEXITY_GROWTH = {"int8": 1.05, "nf4": 1.6}
"""How many times larger the perplexity of SmolLM2-135M-Instruct (fp32, first 256 tokens of the Apache licence) may become.

Measured on 2 cores: fp32 17.76, int8 0.994 times, NF4 1.488 times.
"""

ASSIGNMENT = Assignment(
    name="quantization",
    title="Quantised inference: fewer bytes per weight, and what they cost",
    tasks=(
        Task(
            "absmax_int8",
            "8 bits around zero",
            minutes=25,
            public={"test_absmax_examples": 1, "test_absmax_rounds_to_even": 1},
            hidden={"test_absmax_equals_bitsandbytes": 2, "test_absmax_any_dimension": 1, "test_absmax_arguments": 1},
        ),
        Task(
            "zeropoint_uint8",
            "8 bits over any range",
            minutes=25,
            public={"test_zeropoint_examples": 1},
            hidden={"test_zeropoint_nearest_code": 1, "test_zeropoint_arguments": 1},
        ),
        Task(
            "groupwise_int4",
            "4 bits in groups",
            minutes=35,
            public={"test_int4_examples": 1, "test_int4_packing_examples": 1},
            hidden={
                "test_int4_symmetric": 1,
                "test_int4_asymmetric": 1,
                "test_int4_pack_any_shape": 1,
                "test_int4_arguments": 1,
            },
        ),
        Task(
            "quantize_nf4",
            "NF4",
            minutes=35,
            public={"test_nf4_codebook": 1, "test_nf4_example": 1},
            hidden={
                "test_nf4_equals_bitsandbytes": 2,
                "test_nf4_ties_and_zeros": 1,
                "test_nf4_dequantizes": 1,
                "test_nf4_arguments": 1,
            },
        ),
        Task(
            "double_quantize",
            "Quantised scales",
            minutes=20,
            public={"test_double_example": 1},
            hidden={"test_double_nearest_levels": 1, "test_double_arguments": 1},
        ),
        Task(
            "llm_int8_matmul",
            "8-bit products and outliers",
            minutes=25,
            public={"test_matmul_example": 1},
            hidden={"test_matmul_exact_sums": 1, "test_matmul_equals_bitsandbytes": 1, "test_matmul_arguments": 1},
        ),
        Task(
            "WeightOnlyLinear",
            "A layer of codes, in a model",
            minutes=50,
            public={"test_linear_computes": 1, "test_quantize_model_names": 1},
            hidden={
                "test_linear_follows_its_buffers": 1,
                "test_linear_memory": 2,
                "test_quantized_model_logits": 2,
                "test_quantized_model_serves": 1,
                "test_linear_arguments": 1,
                "test_smollm2_quality": 2,
            },
        ),
        Task(
            "generate",
            "Serving",
            minutes=25,
            public={"test_generate_example": 1, "test_held_bytes_examples": 1},
            hidden={
                "test_generate_any_request": 2,
                "test_generate_arguments": 1,
                "test_held_bytes_of_models": 1,
                "test_smollm2_served": 2,
            },
        ),
        Task(
            "perplexity",
            "Perplexity",
            minutes=25,
            public={"test_perplexity_uniform": 1, "test_perplexity_windows": 1},
            hidden={"test_perplexity_of_any_model": 2, "test_perplexity_arguments": 1},
        ),
        Task(
            "quantized_bytes",
            "Bytes of a quantised model",
            minutes=20,
            public={"test_bytes_examples": 1},
            hidden={"test_bytes_of_real_tensors": 1, "test_bytes_arguments": 1},
        ),
    ),
    preload=("torch", "transformers.models.llama.modeling_llama"),
    models=("SmolLM2-135M-Instruct",),
    call_s=30.0,  # the slowest honest call, SmolLM2 quantised to NF4, takes 2.5 s of a core
    check_s=240.0,
    cpu_s=400,
    memory_bytes=3 << 30,
)

"""The suite of `batched_inference`."""

"""The suite of the assignment `speculative_decoding`."""

"""The suite of the assignment `kv_cache`."""

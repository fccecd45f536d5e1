"""Many submissions: on one machine, on a cluster, again."""

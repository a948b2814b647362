"""The memory bank: scored examples of a run, kept by id, from which sub-batches are sampled later."""

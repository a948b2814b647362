"""The ledger: what each answered super-batch of a run was drawn from; kept, read back and replayed."""

"""The contract, compiled: generated from `proto/preceptor/v1`, never edited."""

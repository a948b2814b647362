"""References: train one, and score a whole data set with it. Jobs that an operator runs, beside the service."""

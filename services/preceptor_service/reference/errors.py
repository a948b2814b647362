"""`JobError`: the one error of the jobs about references. Its text is one line for the operator."""


class JobError(Exception):
    """The job cannot go on; the text says what is wrong, the value, the limit and what to do."""

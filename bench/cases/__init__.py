"""One file per case: the rows to compare, their inputs, and the check that comes first."""

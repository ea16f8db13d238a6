"""Benchmarks: every case checks its result before it times it. Run by `ebmcore bench CASE`."""

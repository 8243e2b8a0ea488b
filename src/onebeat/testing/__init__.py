"""For users' tests: fake clock, manual worker, assertions."""

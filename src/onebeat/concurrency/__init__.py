"""Threads, timers and forks for the other packages; standard library only."""

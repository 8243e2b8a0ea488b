"""The standard-library-only package of threads, timers and forks."""

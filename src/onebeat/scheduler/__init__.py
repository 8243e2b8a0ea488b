"""The Scheduler, its runtime, and its collections: jobs, schedules, queues, workers."""

"""The Scheduler and the collections it offers: jobs, schedules, queues, workers, locks."""

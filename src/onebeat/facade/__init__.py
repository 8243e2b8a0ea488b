"""What a scheduler offers: definitions, and the collections of jobs and schedules."""

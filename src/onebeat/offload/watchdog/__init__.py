"""The event-loop watchdog and its reports of stalls."""

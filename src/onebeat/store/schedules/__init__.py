"""Schedules as rows: declare, edit, fire, read."""

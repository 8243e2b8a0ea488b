"""Time: the clock, triggers, time zones and back-off. All of it is pure except the clock."""

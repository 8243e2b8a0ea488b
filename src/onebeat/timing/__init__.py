"""Time: the clock, time rules and their zones, back-off; pure but for the clock."""

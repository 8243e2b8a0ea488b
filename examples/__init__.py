"""Applications that show onebeat at work."""

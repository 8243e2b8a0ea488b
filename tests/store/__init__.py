"""The store, on every database that can be reached."""

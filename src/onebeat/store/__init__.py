"""The store: the only SQL, the only SQLAlchemy."""

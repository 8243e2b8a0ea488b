"""SQLite, PostgreSQL, MySQL/MariaDB: the few answers in which they differ."""

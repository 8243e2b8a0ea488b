"""A small shop that sends mails, charges cards and cleans up: onebeat in one file, `app.py`."""

"""Jobs as rows: insert, claim, settle, finish, release, rescue, control."""

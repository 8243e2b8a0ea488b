"""Jobs as rows: insert, claim, settle, rescue, control."""

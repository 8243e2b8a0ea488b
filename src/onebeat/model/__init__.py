"""Words: pure values, their decisions, and the protocols between rooms."""

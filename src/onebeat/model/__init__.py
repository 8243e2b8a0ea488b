"""Pure values, the decisions on them, and the protocols between packages."""

"""What users declare: tasks, their signatures, and the routers that collect them."""

"""Thread pools with bounded queues, and the calls that run in them."""

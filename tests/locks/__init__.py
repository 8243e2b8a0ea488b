"""Locks: the contract on each back end, the model, the histories."""

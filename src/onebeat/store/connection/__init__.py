"""Connections: how a store function reaches its database, and which database that is."""

"""The engine: the only long-lived asyncio tasks, the only sleeping."""

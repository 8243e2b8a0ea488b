"""JSON logs that never block and never lose a line: records, bounded queue, writer, dated files, setup and shutdown."""

from __future__ import annotations

from onebeat.logs.filter import TrackingFilter
from onebeat.logs.setup import flush_logs, log_stats, setup_logging, uvicorn_log_config

__all__ = ["TrackingFilter", "flush_logs", "log_stats", "setup_logging", "uvicorn_log_config"]

"""Run blocking functions off the event loop, on thread lanes or in processes, and watch the loop for stalls."""

from __future__ import annotations

from onebeat.offload.decorators import blocking as blocking, cpu_bound as cpu_bound
from onebeat.offload.limits import checkpoint as checkpoint, remaining as remaining
from onebeat.offload.pool.calls import Held as Held
from onebeat.offload.pool.lanes import Lane as Lane, all_lanes as all_lanes
from onebeat.offload.processes import to_process as to_process, to_process_sync as to_process_sync
from onebeat.offload.setup import close_offload as close_offload, setup_offload as setup_offload
from onebeat.offload.threads import to_thread as to_thread
from onebeat.offload.watchdog.watchdog import Watchdog as Watchdog

"""All communication between processes; every function is also correct in a single process."""

from matrix_ssl.distributed.collectives import (
    all_reduce_sum,
    gather,
    gather_for_parts,
    maximum,
    row_counts,
    sum_of_parts,
)
from matrix_ssl.distributed.processes import (
    alone,
    barrier,
    broadcast_object,
    check_equal,
    connected,
    is_main,
    launcher,
    local_rank,
    rank,
    start,
    stop,
    together,
    world_size,
    wrap,
)

__all__ = [
    "all_reduce_sum",
    "alone",
    "barrier",
    "broadcast_object",
    "check_equal",
    "connected",
    "gather",
    "gather_for_parts",
    "is_main",
    "launcher",
    "local_rank",
    "maximum",
    "rank",
    "row_counts",
    "start",
    "stop",
    "sum_of_parts",
    "together",
    "world_size",
    "wrap",
]

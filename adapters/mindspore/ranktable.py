"""Huawei's rank tables: which device of which machine is which worker."""

from __future__ import annotations

import json
from pathlib import Path

from refinedet.backend import BackendError


def read_rank_table(path: Path) -> list[dict[int, int]]:
    """The ``device_id`` of every ``rank_id``, machine by machine.

    Args:
        path: JSON as ``hccl_tools`` writes it: ``server_list``, each with a list ``device``.
    Raises:
        BackendError: not such a file, or ranks that are not 0, 1, 2, ...
    """
    try:
        servers = json.loads(path.read_text())["server_list"]
        found = [
            {int(device["rank_id"]): int(device["device_id"]) for device in server["device"]}
            for server in servers
        ]
        count = sum(len(server["device"]) for server in servers)
    except OSError as error:
        raise BackendError(f"--rank-table-file: {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(
            f"--rank-table-file: {path}: no rank table; it has a server_list, whose servers have "
            "a list device of rank_id and device_id"
        ) from error
    if sorted(rank for server in found for rank in server) != list(range(count)):
        raise BackendError(f"--rank-table-file: {path}: its rank_ids are not 0 to {count - 1}")
    return found


def require_fit(path: Path, table: list[dict[int, int]], workers: int, nodes: int) -> None:
    """Refuse a table of other workers than those asked for.

    Raises:
        BackendError: another number of machines, or of devices on one of them.
    """
    counts = [len(server) for server in table]
    if sum(counts) != workers:
        raise BackendError(
            f"--rank-table-file: {path}: has {sum(counts)} devices, and --workers is {workers}; "
            "they must agree"
        )
    if counts != [workers // nodes] * nodes:
        raise BackendError(
            f"--rank-table-file: {path}: its machines have {', '.join(map(str, counts))} devices; "
            f"--workers {workers} --nodes {nodes} wants {workers // nodes} on each of {nodes}"
        )
    for node, server in enumerate(table):
        first = node * workers // nodes
        if sorted(server) != list(range(first, first + workers // nodes)):
            raise BackendError(
                f"--rank-table-file: {path}: machine {node} must have the ranks from {first} on, "
                "in this order of machines"
            )

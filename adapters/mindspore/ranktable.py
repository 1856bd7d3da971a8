"""Huawei's rank tables: the machine and the device of each rank."""

from __future__ import annotations

import json
from pathlib import Path

from refinedet.errors import UsageError

DIGITS = 9
"""The most that a rank or a device has."""


def read_rank_table(path: Path) -> list[dict[int, int]]:
    """The ``device_id`` of every ``rank_id``, machine by machine.

    Args:
        path: JSON as ``hccl_tools`` writes it: ``server_list``, each with a list ``device``.
    Raises:
        UsageError: not such a file, ranks that are not 0, 1, 2, ..., or a machine that has
            a device twice.
    """
    try:
        servers = json.loads(path.read_text())["server_list"]
        table = [
            {
                _number(device["rank_id"]): _number(device["device_id"])
                for device in server["device"]
            }
            for server in servers
        ]
        count = sum(len(server["device"]) for server in servers)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", key="rank_table_file") from error
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path}: no rank table; it has a server_list, whose servers have "
            "a list device of rank_id and device_id",
            key="rank_table_file",
        ) from error
    if sorted(rank for server in table for rank in server) != list(range(count)):
        raise UsageError(f"{path}: its rank_ids are not 0 to {count - 1}", key="rank_table_file")
    for node, server in enumerate(table):
        devices = list(server.values())
        if twice := [device for device in devices if devices.count(device) > 1]:
            raise UsageError(
                f"{path}: machine {node} has device {twice[0]} twice; "
                "each rank needs one of its own",
                key="rank_table_file",
            )
    return table


def _number(value: object) -> int:
    """A number from 0, as the text or the number that it is in a table."""
    text = str(value)
    if not (text.isascii() and text.isdecimal() and len(text) <= DIGITS):
        raise ValueError(f"no number: {text}")
    return int(text)


def require_fit(path: Path, table: list[dict[int, int]], ranks: int, nodes: int) -> None:
    """Refuse a table for other ranks than those asked for.

    Raises:
        UsageError: another number of machines, or of devices on one of them.
    """
    counts = [len(server) for server in table]
    if sum(counts) != ranks:
        raise UsageError(
            f"{path}: has {sum(counts)} devices for {ranks} ranks",
            key="rank_table_file",
        )
    if counts != [ranks // nodes] * nodes:
        raise UsageError(
            f"{path}: its machines have {', '.join(map(str, counts))} devices; "
            f"{ranks} ranks need {ranks // nodes} on each of {nodes}",
            key="rank_table_file",
        )
    for node, server in enumerate(table):
        first = node * ranks // nodes
        if sorted(server) != list(range(first, first + ranks // nodes)):
            raise UsageError(
                f"{path}: machine {node} must have the ranks from {first} on, "
                "in this order of machines",
                key="rank_table_file",
            )

"""Level *network*."""

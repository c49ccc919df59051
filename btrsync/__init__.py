"""Mirror btrfs subvolumes by incremental send and receive."""

__version__ = "0.1.0"

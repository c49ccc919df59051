"""The life of an array of encrypted disks: one module for each thing that is done with it."""

"""Virtual machines for the tests: from Debian's packages, by User Mode Linux or QEMU, without root."""

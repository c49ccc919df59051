"""Virtual machines for the tests: images from Debian's packages, booted by User Mode Linux or QEMU, without root."""

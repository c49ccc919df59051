"""The rehearsal: the whole mirror played on loop devices, two hosts and a real sshd, step by step."""

"""The probes, a file each: what the papers measured besides the loss. probe.py is the command."""

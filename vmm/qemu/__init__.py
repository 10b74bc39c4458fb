"""QEMU: its command line, its monitor, its process."""

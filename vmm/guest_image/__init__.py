"""Builds the guest: kernel, initramfs, the rehearsal's layer and the scratch disk's template."""

"""The demo: images built from Debian packages, and the main job shown on real components."""

"""Leaf package: what every other package of Thaw may rely on, and which relies on none of them."""

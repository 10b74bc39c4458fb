"""Pod networks: how a microVM's tap gets an address and reaches the world."""

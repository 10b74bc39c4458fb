"""What each shared part of a node costs for one pod, beside 10, 100 and 1,000 that are fakes."""

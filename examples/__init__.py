"""Walk-throughs: scripts that run offline in under two minutes, and check their own claim by a number."""

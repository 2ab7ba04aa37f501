"""Memory of a device: how much is free, what a call may take and takes, and recovery when memory runs out."""

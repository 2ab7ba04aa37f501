"""Memory of the device: what there is, what a call may take and takes, and what to do when it runs out."""

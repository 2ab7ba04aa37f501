"""Checks what the caller asked for, each part once: inputs, target and options."""

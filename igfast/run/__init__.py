"""Computes the integral: quadrature, path, plan, the loop over chunks, and the report.

A step is one call of the model at one alpha, a row one example at one alpha. A chunk goes through the model at once.
"""

"""The integral: quadrature, path, plan, the loop over chunks, and the report."""

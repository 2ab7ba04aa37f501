"""Tensors for the operator tests: every layout that a kernel has a path for, and the hazards."""

import torch


def contiguous(shape, dtype):
    return torch.randn(shape).to(dtype)


def channels_last(shape, dtype):
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    x = torch.randn(shape).to(dtype)
    return x.to(memory_format=formats[x.dim()]) if x.dim() in formats else x


def transposed(shape, dtype):
    """Non-contiguous: the memory order of the dimensions reversed."""
    return torch.randn(shape[::-1]).to(dtype).permute(*reversed(range(len(shape))))


def sliced(shape, dtype):
    """Non-contiguous with gaps: every second element of a larger tensor."""
    return torch.randn([2 * n for n in shape]).to(dtype)[tuple(slice(0, None, 2) for _ in shape)]


def expanded(shape, dtype):
    """All features of an example share one number in memory, as the gradient of a sum does."""
    return torch.randn([shape[0], *[1] * (len(shape) - 1)]).to(dtype).expand(shape)


LAYOUTS = (contiguous, channels_last, transposed, sliced, expanded)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Scalars, vectors around the vector width and the tile (1024), images, volumes, sizes of 1, nothing at all.
SHAPES = (
    (3,),
    (2, 1),
    (2, 17),
    (1, 1024),
    (2, 2500),
    (2, 3, 5, 7),
    (1, 3, 40, 41),
    (2, 1, 4, 1),
    (2, 20, 6, 5),
    (1, 2, 3, 4, 5),
    (2, 0, 3),
)

# One rounding of the result; sums of up to 9 rows of size about 1 for the accumulators.
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-6, torch.float64: 1e-14}
ACC_TOLERANCE = {torch.float16: 2e-6, torch.bfloat16: 2e-6, torch.float32: 2e-6, torch.float64: 1e-14}


def rows(batch, n_rows=9):
    """Examples out of order and repeated, alphas with both ends, weights."""
    example = torch.randint(0, batch, (n_rows,))
    alpha = torch.rand(n_rows, dtype=torch.float64)
    alpha[0], alpha[-1] = 0.0, 1.0
    return example, alpha, torch.rand(n_rows, dtype=torch.float64)


def baselines(shape, dtype, layout):
    """The three forms: one number, one example, one for each."""
    return (
        torch.full((), 0.3).to(dtype),
        layout((1, *shape[1:]), dtype),
        layout(shape, dtype),
    )

"""A script as Captum's users have it: it knows nothing of igfast.

python -m examples.captum_script
python -m igfast run -m examples.captum_script
"""

import json
import resource

import torch
from captum.attr import IntegratedGradients, NoiseTunnel
from torch import nn

torch.manual_seed(0)
layers = []
for before, after in ((3, 32), (32, 32), (32, 64), (64, 64)):
    layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
images = torch.rand(2, 3, 96, 96)

explainer = IntegratedGradients(model)
attributions, delta = explainer.attribute(images, target=3, n_steps=50, return_convergence_delta=True)
smooth = NoiseTunnel(explainer).attribute(images, nt_samples=2, stdevs=0.05, target=3, n_steps=10)
print(
    json.dumps(
        {
            "sums": attributions.sum(dim=(1, 2, 3)).tolist(),
            "strongest": attributions.abs().amax(dim=(1, 2, 3)).tolist(),
            "deltas": delta.tolist(),
            "smooth": smooth.abs().sum(dim=(1, 2, 3)).tolist(),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )
)

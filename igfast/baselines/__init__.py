"""Baselines: where a path starts, and what the absence of the features is taken to be.

Functions take the inputs and return a baseline for each example, on the inputs' device and of their dtype;
`zero_embeddings` returns one for a layer. An
attribution explains the difference between the outputs for input and baseline, so another baseline asks another
question. `check_baseline` tells what a model makes of one.

Sources: Sundararajan, Taly, Yan 2017, arXiv:1703.01365, section 3; Sturmfels, Lundberg, Lee 2020, "Visualizing the
Impact of Feature Attribution Baselines", Distill, doi:10.23915/distill.00022.
"""

from igfast.baselines.check import BaselineCheck as BaselineCheck
from igfast.baselines.check import check_baseline as check_baseline
from igfast.baselines.features import black as black
from igfast.baselines.features import blurred as blurred
from igfast.baselines.features import constant as constant
from igfast.baselines.features import data_mean as data_mean
from igfast.baselines.features import gaussian as gaussian
from igfast.baselines.features import maximum_distance as maximum_distance
from igfast.baselines.features import random_inputs as random_inputs
from igfast.baselines.features import uniform as uniform
from igfast.baselines.features import white as white
from igfast.baselines.features import zeros as zeros
from igfast.baselines.tokens import mask_tokens as mask_tokens
from igfast.baselines.tokens import pad_tokens as pad_tokens
from igfast.baselines.tokens import unknown_tokens as unknown_tokens
from igfast.baselines.tokens import zero_embeddings as zero_embeddings
from igfast.request.model_inputs import AtLayer as AtLayer

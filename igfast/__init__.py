"""igfast: Integrated Gradients with Captum's API in bounded memory, on fused C++ kernels.

    from igfast import IntegratedGradients  # was: from captum.attr import IntegratedGradients

Source: Sundararajan, Taly, Yan 2017, "Axiomatic Attribution for Deep Networks", arXiv:1703.01365.
"""

from importlib.metadata import version as _version

from igfast.attr import GradientShap as GradientShap
from igfast.attr import IntegratedGradients as IntegratedGradients
from igfast.attr import LayerGradientShap as LayerGradientShap
from igfast.attr import LayerIntegratedGradients as LayerIntegratedGradients
from igfast.attr import NeuronGradientShap as NeuronGradientShap
from igfast.attr import NeuronIntegratedGradients as NeuronIntegratedGradients
from igfast.errors import ArgumentError as ArgumentError
from igfast.errors import ArgumentTypeError as ArgumentTypeError
from igfast.errors import BaselineError as BaselineError
from igfast.errors import CommandError as CommandError
from igfast.errors import ConvergenceWarning as ConvergenceWarning
from igfast.errors import ExplanationFileError as ExplanationFileError
from igfast.errors import IgfastError as IgfastError
from igfast.errors import IgfastMemoryError as IgfastMemoryError
from igfast.errors import IgfastWarning as IgfastWarning
from igfast.errors import InputError as InputError
from igfast.errors import InputTypeError as InputTypeError
from igfast.errors import KernelsError as KernelsError
from igfast.errors import LayerError as LayerError
from igfast.errors import LeanError as LeanError
from igfast.errors import MissingPackageError as MissingPackageError
from igfast.errors import OnePassError as OnePassError
from igfast.errors import OutputError as OutputError
from igfast.errors import OutputTypeError as OutputTypeError
from igfast.errors import SelectorError as SelectorError
from igfast.errors import SelectorTypeError as SelectorTypeError
from igfast.errors import TargetError as TargetError
from igfast.errors import TargetTypeError as TargetTypeError
from igfast.explanation import Explanation as Explanation
from igfast.llm import LLMAttributionResult as LLMAttributionResult
from igfast.llm import LLMGradientAttribution as LLMGradientAttribution
from igfast.patching import CaptumPatch as CaptumPatch
from igfast.patching import patch_captum as patch_captum
from igfast.patching import unpatch_captum as unpatch_captum
from igfast.request.several_baselines import Baselines as Baselines
from igfast.run.quadrature import METHODS as METHODS
from igfast.run.report import Convergence as Convergence
from igfast.run.report import LeanReport as LeanReport
from igfast.run.report import RunReport as RunReport
from igfast.selecting import select_output as select_output

__version__ = _version("igfast")

from igfast import alibi as alibi
from igfast import baselines as baselines
from igfast import viz as viz
from igfast.diagnosis import Diagnosis as Diagnosis
from igfast.diagnosis import Finding as Finding
from igfast.diagnosis import diagnose as diagnose

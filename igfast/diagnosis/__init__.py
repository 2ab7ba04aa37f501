"""Checks a model, an input and a baseline before their attributions are believed."""

from igfast.diagnosis.checks import diagnose as diagnose
from igfast.diagnosis.result import Diagnosis as Diagnosis
from igfast.diagnosis.result import Finding as Finding

"""Explanations: attributions together with what they are about, as one object that can be kept."""

from igfast.explanation.result import Explanation as Explanation
